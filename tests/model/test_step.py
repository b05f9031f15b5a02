"""A pass of one token of each of some sequences in one C++ call equals the same pass op by op."""

import copy

import pytest
import torch
from nano3.kernels.cpu.draw import Draw, draw_tokens
from nano3.kernels.cpu.native import native
from torch import nn

from nano3.config.model import ModelConfig
from nano3.model import step as step_module
from nano3.model.attention import Attention
from nano3.model.lm import LM
from nano3.model.mlp import MLP
from nano3.model.state.plan import Plan, Span
from nano3.model.state.pool import StatePool

PAGE = 4
SIZES = {"vocab_size": 64, "d_model": 32, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "mamba_n_heads": 4}
SIZES |= {"mamba_head_dim": 8, "d_state": 16, "n_groups": 2, "chunk_size": 8, "n_experts": 4, "top_k": 2}
SIZES |= {"d_expert": 16, "d_shared": 16, "d_ff": 32, "init_std": 0.2}
HAVE = native().library is not None


@pytest.fixture
def model():
    return LM(ModelConfig(pattern="M*ME-", **SIZES)).init_weights(seed=3).eval()


def filled_pool(model, dtype=torch.float32, seed=0):
    pool = StatePool(model.cfg, n_slots=80, n_pages=200, page_size=PAGE, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    for block in pool.blocks:
        for name in ("conv", "ssm", "keys", "values"):
            if (tensor := getattr(block, name, None)) is not None:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
    return pool


def spans(count, length=1, saves=()):
    return [
        Span(
            length,
            79 - i,
            context=i % 9,
            pages=range(3 * i, 3 * i + 3) if i % 2 else [3 * i, 199 - i, 3 * i + 2],
            saves=saves,
        )
        for i in range(count)
    ]


@torch.inference_mode()
def run(model, pool, plan):
    tokens = (torch.arange(plan.n_tokens) * 7 % 64).unsqueeze(0)
    return model.hidden(tokens, state=pool.state(plan))


def both(model, monkeypatch, plan_spans, dtype=torch.float32):
    """(result, pool) in one call and op by op."""
    results = []
    for backend in ("", "eager"):
        with monkeypatch.context() as patched:
            patched.setenv("NANO3_BACKEND", backend)
            pool = filled_pool(model, dtype)
            results.append((run(model, pool, Plan(plan_spans, PAGE)), pool))
    return results


def in_one_call(hidden):
    return not hidden.routing


def assert_same_pools(one, other, tolerance):
    for a, b in zip(one.blocks, other.blocks, strict=True):
        for name in ("conv", "ssm", "keys", "values"):
            if hasattr(a, name):
                torch.testing.assert_close(getattr(a, name), getattr(b, name), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_hidden_and_states_equal_those_of_the_blocks(model, monkeypatch, count):
    (got, pool), (expected, other) = both(model, monkeypatch, spans(count))
    assert in_one_call(got) == HAVE
    assert len(expected.routing) == 1
    torch.testing.assert_close(got.x, expected.x, atol=2e-5, rtol=2e-5)
    assert_same_pools(pool, other, 2e-5)


def test_narrow_activations(monkeypatch):
    """Without routing, whose choices may turn on a last bit."""
    model = LM(ModelConfig(pattern="M*M-", **SIZES)).init_weights(seed=3).to_dtype(torch.bfloat16).eval()
    (got, pool), (expected, other) = both(model, monkeypatch, spans(9), torch.bfloat16)
    assert got.x.dtype == torch.bfloat16
    torch.testing.assert_close(got.x, expected.x, atol=6e-2, rtol=6e-2)
    assert_same_pools(pool, other, 6e-2)


def test_narrow_weights_under_wide_activations(model, monkeypatch):
    model.to_dtype(torch.bfloat16, torch.float32)
    (got, pool), (expected, other) = both(model, monkeypatch, spans(5))
    assert in_one_call(got) == HAVE
    torch.testing.assert_close(got.x, expected.x, atol=2e-5, rtol=2e-5)
    assert_same_pools(pool, other, 2e-5)


def test_the_compute_dtype_may_change_between_steps(model, monkeypatch):
    model.to_dtype(torch.bfloat16)
    run(model, filled_pool(model, torch.bfloat16), Plan(spans(5), PAGE))
    model.compute_dtype = torch.float32
    (got, _), (expected, _) = both(model, monkeypatch, spans(5))
    torch.testing.assert_close(got.x, expected.x, atol=2e-5, rtol=2e-5)


def test_states_are_kept_where_the_plan_says(model, monkeypatch):
    saving = [*spans(2), Span(1, 40, 3, [150], saves=((1, 60),)), Span(1, 41, 0, [151], saves=((1, 61),))]
    (got, pool), (_, other) = both(model, monkeypatch, saving)
    assert in_one_call(got) == HAVE
    assert_same_pools(pool, other, 2e-5)
    assert torch.equal(pool.blocks[0].ssm[60], pool.blocks[0].ssm[40])
    assert torch.equal(pool.blocks[2].conv[61], pool.blocks[2].conv[41])


@pytest.mark.parametrize("plan_spans", [[*spans(3), Span(2, 0, 0, [150])], spans(65), []])
def test_other_passes_go_op_by_op(model, plan_spans):
    pool = filled_pool(model)
    assert not in_one_call(run(model, pool, Plan(plan_spans, PAGE)))


def test_gradients_go_op_by_op(model):
    pool, plan = filled_pool(model), Plan(spans(2), PAGE)
    hidden = model.hidden(torch.tensor([[1, 2]]), state=pool.state(plan))
    assert hidden.x.requires_grad
    assert hidden.routing


def changed_in_place(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)


def swapped_data(model):
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.25


def replaced_parameters(model):
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach() * 1.25))


def replaced_blocks(model):
    blocks = copy.deepcopy(list(model.blocks))
    swapped_data(nn.ModuleList(blocks))
    for i, block in enumerate(blocks):
        model.blocks[i] = block


def loaded(model):
    model.load_state_dict({name: tensor * 1.25 for name, tensor in model.state_dict().items()}, assign=True)


def converted(model):
    model.to_dtype(torch.bfloat16, torch.float32)


def biased(model):
    model.expert_biases()[0].copy_(torch.tensor([5.0, -5.0, 5.0, -5.0]))


@pytest.mark.parametrize(
    "change", [changed_in_place, swapped_data, replaced_parameters, replaced_blocks, loaded, converted, biased]
)
def test_weights_may_change_in_any_way_between_steps(model, monkeypatch, change):
    before = run(model, filled_pool(model), Plan(spans(3), PAGE)).x
    change(model)
    (got, _), (expected, _) = both(model, monkeypatch, spans(3))
    assert in_one_call(got) == HAVE
    torch.testing.assert_close(got.x, expected.x, atol=2e-5, rtol=2e-5)
    assert not torch.allclose(before, got.x, atol=1e-4)


def test_pools_take_turns(model, monkeypatch):
    one, other = filled_pool(model, seed=1), filled_pool(model, seed=2)
    first = run(model, one, Plan(spans(3), PAGE)).x
    run(model, other, Plan(spans(3), PAGE))
    again = filled_pool(model, seed=1)
    torch.testing.assert_close(run(model, again, Plan(spans(3), PAGE)).x, first, atol=0, rtol=0)
    assert_same_pools(one, again, 0)


class Scaled(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return 2 * self.inner(x)


def test_what_the_program_does_not_know_goes_op_by_op(model):
    assert (step_module.why_not(model) is None) == HAVE
    pool, plan = filled_pool(model), Plan(spans(2), PAGE)
    seen = []
    handle = model.blocks[3].register_forward_hook(lambda *_: seen.append(1))
    assert not in_one_call(run(model, pool, plan))
    assert seen == [1]
    handle.remove()
    assert in_one_call(run(model, pool, plan)) == HAVE
    inner = model.blocks[0].mixer.in_proj
    model.blocks[0].mixer.in_proj = Scaled(inner)
    assert not in_one_call(run(model, pool, plan))
    if HAVE:
        assert "Scaled" in step_module.why_not(model)
    model.blocks[0].mixer.in_proj = inner
    assert in_one_call(run(model, pool, plan)) == HAVE


def test_explain_says_what_runs(model):
    for backend, reason in (step_module.explain(), step_module.explain(model)):
        assert (backend, reason) == (("cpu", "decoding step: one C++ call") if HAVE else ("op by op", native().reason))


def test_why_not_says_what_forced_another_backend(model, monkeypatch):
    monkeypatch.setenv("NANO3_BACKEND", "eager")
    assert step_module.why_not() == step_module.why_not(model) == "NANO3_BACKEND is eager"


@pytest.mark.parametrize("pattern", ["M", "*", "MM-", "E*"])
def test_models_without_some_kinds_of_blocks(pattern, monkeypatch):
    model = LM(ModelConfig(pattern=pattern, **SIZES)).init_weights(seed=4).eval()
    (got, pool), (expected, other) = both(model, monkeypatch, spans(3))
    torch.testing.assert_close(got.x, expected.x, atol=2e-5, rtol=2e-5)
    assert_same_pools(pool, other, 2e-5)


def test_no_wider_types(model, monkeypatch):
    model.to_dtype(torch.float64)
    (got, _), (expected, _) = both(model, monkeypatch, spans(3), torch.float64)
    torch.testing.assert_close(got.x, expected.x)
    assert len(got.routing) == 1


def transposed(model):
    """Square weights under another layout, at the same place."""
    for block in model.blocks:
        if isinstance(block.mixer, Attention):
            assert block.mixer.q_proj.weight.shape == (32, 32)
            block.mixer.q_proj.weight.data = block.mixer.q_proj.weight.data.t()


def spread(model):
    """The first number of a norm's weights in place of all, at the same place."""
    weight = model.norm_f.weight
    with torch.no_grad():
        weight.copy_(torch.arange(2.0, 34.0))
    weight.data = weight.data[:1].expand(32)


def narrowed(model):
    """Fewer dense MLP channels: the first ones, at the same place."""
    mlp = model.blocks[4].mixer
    mlp.up_proj.weight.data = mlp.up_proj.weight.data[:16]
    mlp.down_proj.weight.data = mlp.down_proj.weight.data[:, :16].contiguous()


def other_eps(model):
    for module in model.modules():
        if hasattr(module, "eps"):
            module.eps = 0.5


def one_eps(model):
    model.blocks[1].norm.eps = 0.5


def gate_eps(model):
    model.blocks[0].mixer.norm.eps = 0.5


def gate_scale(model):
    model.blocks[3].mixer.gate.scale *= 3


def gate_choices(model):
    model.blocks[3].mixer.gate.top_k = 1


def replaced_mixer(model):
    mixer = model.blocks[1].mixer
    mixer.forward = lambda *arguments: (2 * Attention.forward(mixer, *arguments)[0], None)


def replaced_method(model):
    shared = model.blocks[3].mixer.shared_experts
    shared.apply_to = lambda x: 3 * MLP.apply_to(shared, x)


STILL_ONE_CALL = {narrowed, other_eps, gate_scale, gate_choices}


@pytest.mark.parametrize(
    "change",
    [
        transposed,
        spread,
        narrowed,
        other_eps,
        one_eps,
        gate_eps,
        gate_scale,
        gate_choices,
        replaced_mixer,
        replaced_method,
    ],
)
def test_layouts_settings_and_methods_may_change_between_steps(model, monkeypatch, change):
    before = run(model, filled_pool(model), Plan(spans(3), PAGE)).x
    change(model)
    (got, pool), (expected, other) = both(model, monkeypatch, spans(3))
    assert in_one_call(got) == (HAVE and change in STILL_ONE_CALL)
    torch.testing.assert_close(got.x, expected.x, atol=2e-5, rtol=2e-5)
    assert_same_pools(pool, other, 2e-5)
    assert not torch.allclose(before, got.x, atol=1e-4)


def test_settings_of_the_modules_count_and_not_those_of_the_configuration(model, monkeypatch):
    model.blocks[3].mixer.gate.top_k = 3
    model.blocks[3].mixer.gate.scale = 0.25
    other_eps(model)
    (got, _), (expected, _) = both(model, monkeypatch, spans(3))
    assert in_one_call(got) == HAVE
    torch.testing.assert_close(got.x, expected.x, atol=2e-5, rtol=2e-5)


def test_groups_that_differ_go_op_by_op_which_tells(model):
    run(model, filled_pool(model), Plan(spans(3), PAGE))
    model.blocks[0].mixer.norm.group_width *= 2
    with pytest.raises(RuntimeError, match="split"):
        run(model, filled_pool(model), Plan(spans(3), PAGE))


def test_a_setting_that_is_no_number_goes_op_by_op(model, monkeypatch):
    model.blocks[3].mixer.gate.scale = torch.tensor(2.5)
    (got, _), (expected, _) = both(model, monkeypatch, spans(3))
    assert not in_one_call(got)
    torch.testing.assert_close(got.x, expected.x)


def test_logits_stay_after_the_next_step(model):
    if not HAVE:
        pytest.skip("needs the C++ library")
    with torch.inference_mode():
        pool, plan = filled_pool(model), Plan(spans(3), PAGE)
        first = step_module.step(model, torch.tensor([[1, 2, 3]]), pool.state(plan), logits=True).logits
        copied = first.clone()
        step_module.step(model, torch.tensor([[4, 5, 6]]), pool.state(plan), logits=True)
    assert torch.equal(first, copied)


def test_a_weight_of_one_number_may_be_replaced_by_an_equal_one(monkeypatch):
    """And changed afterwards."""
    sizes = SIZES | {"mamba_n_heads": 1, "mamba_head_dim": 32, "n_groups": 1}
    model = LM(ModelConfig(pattern="M", **sizes)).init_weights(seed=4).eval()
    before = run(model, filled_pool(model), Plan(spans(3), PAGE)).x
    mixer = model.blocks[0].mixer
    mixer.D = nn.Parameter(mixer.D.detach().clone())
    run(model, filled_pool(model), Plan(spans(3), PAGE))
    with torch.no_grad():
        mixer.D.mul_(3)
    (got, _), (expected, _) = both(model, monkeypatch, spans(3))
    torch.testing.assert_close(got.x, expected.x, atol=2e-5, rtol=2e-5)
    assert not torch.allclose(before, got.x, atol=1e-4)


def ahead(count, shift=0):
    """The spans of `run` as `choosing_step` takes them."""
    return [
        step_module.Ahead((i * 7 + shift) % 64, s.slot, list(s.pages), s.context + 1)
        for i, s in enumerate(spans(count))
    ]


GREEDY, DRAWN = Draw(0, 0, 1, 0, 0.5), Draw(0.7, 0, 0.9, 0, 0.6)


def draws(count):
    """Every third sequence's logits are wanted; of the others, every second is drawn."""
    return [(GREEDY, None, DRAWN)[i % 3] for i in range(count)]


@torch.inference_mode()
def choose(model, pool, count, limit=50, shift=0):
    return step_module.choosing_step(model, ahead(count, shift), pool, limit, draws(count))


@torch.inference_mode()
def logits_of(model, pool, steps):
    plan = Plan([Span(1, a.slot, a.length - 1, a.pages) for a in steps], PAGE)
    tokens = torch.tensor([[a.token for a in steps]])
    return step_module.step(model, tokens, pool.state(plan), logits=True).logits


def assert_chosen(got, logits, limit):
    """As `draw_tokens` says, row by row."""
    assert [token is None for token in got.tokens] == [draw is None for draw in draws(len(logits))]
    rows = [m for m, token in enumerate(got.tokens) if token is not None]
    expected = draw_tokens(logits[rows], limit, [draws(len(logits))[m] for m in rows])
    assert [got.tokens[m] for m in rows] == expected
    if len(rows) < len(logits):
        assert torch.equal(got.logits, logits[1::3])


@pytest.mark.parametrize("count", [1, 7, 64])
def test_choosing_step_chooses_as_the_logits_say(model, count):
    pool, other = filled_pool(model), filled_pool(model)
    got = choose(model, pool, count)
    if not HAVE:
        assert got is None
        pytest.skip("needs the C++ library")
    with torch.inference_mode():
        logits = model.lm_head(run(model, other, Plan(spans(count), PAGE)).x[0])
    greedy = [token for token, draw in zip(got.tokens, draws(count), strict=True) if draw == GREEDY]
    assert [i for i, *_ in greedy] == logits[::3, :50].argmax(-1).tolist()
    best = logits[::3].log_softmax(-1)[:, :50].amax(-1).tolist()
    torch.testing.assert_close([p for _, p, _ in greedy], best, atol=1e-4, rtol=1e-4)
    assert_same_pools(pool, other, 0)


def test_choosing_steps_of_changing_sequences(model):
    """Pages, number and order of sequences change from step to step, as they do in an engine."""
    if not HAVE:
        pytest.skip("needs the C++ library")
    pool, other = filled_pool(model), filled_pool(model)
    for count, shift in [(7, 1), (2, 2), (9, 3), (9, 4)]:
        steps = ahead(count, shift)
        if shift == 4:
            steps = [a._replace(pages=[*a.pages[::-1], 190 - i], length=1) for i, a in enumerate(steps)][::-1]
        with torch.inference_mode():
            got = step_module.choosing_step(model, steps, pool, 64, draws(count))
        assert_chosen(got, logits_of(model, other, steps), 64)
        assert_same_pools(pool, other, 0)


@pytest.mark.parametrize("change", [changed_in_place, swapped_data, replaced_blocks, loaded, converted, narrowed])
def test_choosing_steps_see_changed_weights(model, change):
    before = choose(model, filled_pool(model), 3)
    change(model)
    got = choose(model, filled_pool(model), 3)
    if HAVE:
        fresh = step_module._STEPS.pop(model) and choose(model, filled_pool(model), 3)
        assert before.tokens != got.tokens == fresh.tokens
        assert torch.equal(got.logits, fresh.logits)


def test_choosing_step_goes_op_by_op_where_step_does(model, monkeypatch):
    pool = filled_pool(model)
    assert step_module.choosing_step(model, ahead(2), pool, 64, draws(2)) is None  # gradients
    assert choose(model, pool, 0) is None
    assert choose(model, pool, 65) is None
    monkeypatch.setenv("NANO3_BACKEND", "eager")
    assert choose(model, pool, 2) is None


@torch.inference_mode()
def test_experts_of_each_token_are_those_of_the_router(model, monkeypatch):
    if not HAVE:
        pytest.skip("needs the C++ library")
    plan = Plan(spans(7), PAGE)
    tokens = (torch.arange(7) * 7 % 64).unsqueeze(0)
    pool = filled_pool(model)
    got = step_module.step(model, tokens, pool.state(plan), experts=True).expert_ids
    with monkeypatch.context() as patched:
        patched.setenv("NANO3_BACKEND", "eager")
        routing = run(model, filled_pool(model), plan).routing
    assert torch.equal(got.long(), torch.stack([stats._expert_ids.view(7, -1) for stats in routing]))
    chosen = step_module.choosing_step(model, ahead(7), filled_pool(model), 64, draws(7), experts=True)
    assert torch.equal(chosen.expert_ids, got)
    assert choose(model, filled_pool(model), 7).expert_ids is None
