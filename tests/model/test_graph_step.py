"""The decoding step of CUDA graphs, computed as it is on a CPU: it equals the pass op by op and is fit for a graph."""

from dataclasses import replace

import pytest
import torch
from nano3.kernels.cpu.draw import Draw

from nano3.config.errors import UserError
from nano3.config.model import ModelConfig
from nano3.model import step as step_module
from nano3.model.decode import graphed
from nano3.model.decode.batch import Indices, Outputs
from nano3.model.lm import LM
from nano3.model.state.plan import Plan, Span
from nano3.model.state.pool import StatePool
from tests.model.steps import (
    PAGE,
    SIZES,
    assert_same_pools,
    biased,
    changed_in_place,
    converted,
    filled_pool,
    gate_choices,
    gate_eps,
    gate_scale,
    loaded,
    narrowed,
    other_eps,
    replaced_blocks,
    replaced_method,
    replaced_mixer,
    replaced_parameters,
    run,
    spans,
    swapped_data,
    transposed,
)

CHANGES = [changed_in_place, swapped_data, replaced_parameters, replaced_blocks, loaded, converted, biased, narrowed]
CHANGES += [other_eps, gate_eps, gate_scale, gate_choices]
APART = [replaced_mixer, replaced_method, transposed]


@pytest.fixture
def model():
    return LM(ModelConfig(pattern="M*ME-", **SIZES)).init_weights(seed=3).eval()


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    monkeypatch.setenv("NANO3_GRAPHS", "1")


def op_by_op(monkeypatch, function, *arguments):
    with monkeypatch.context() as patched:
        patched.setenv("NANO3_GRAPHS", "0")
        patched.setenv("NANO3_BACKEND", "eager")
        return function(*arguments)


def in_graph(hidden):
    return not hidden.routing


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 3, 16, 49])
def test_equals_the_pass_op_by_op_and_padding_writes_nothing(model, monkeypatch, count, dtype):
    model.to_dtype(dtype)
    pool, other, plan = filled_pool(model, dtype), filled_pool(model, dtype), Plan(spans(count), PAGE)
    got, expected = run(model, pool, plan), op_by_op(monkeypatch, run, model, other, plan)
    assert in_graph(got)
    assert not in_graph(expected)
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(got.x, expected.x, atol=tolerance, rtol=tolerance)
    assert_same_pools(pool, other, tolerance)


@pytest.mark.parametrize("pattern", ["M", "*-", "E"])
def test_models_without_some_kinds_of_blocks(monkeypatch, pattern):
    model = LM(ModelConfig(pattern=pattern, **SIZES)).init_weights(seed=3).eval()
    pool, other, plan = filled_pool(model), filled_pool(model), Plan(spans(5), PAGE)
    got, expected = run(model, pool, plan), op_by_op(monkeypatch, run, model, other, plan)
    torch.testing.assert_close(got.x, expected.x, atol=1e-5, rtol=1e-5)
    assert_same_pools(pool, other, 1e-5)


GREEDY, DRAWN, WHOLE = Draw(0, 0, 1, 0, 0.5), Draw(0.7, 0, 0.9, 0, 0.6), Draw(1.0, 0, 1, 0.01, 0.3)


def ahead(count, shift=0):
    return [
        step_module.Ahead((i * 7 + shift) % 64, s.slot, list(s.pages), s.context + 1)
        for i, s in enumerate(spans(count))
    ]


@torch.inference_mode()
def choose(model, pool, steps, draws, limit=50, **options):
    return step_module.choosing_step(model, steps, pool, limit, draws, **options)


@torch.inference_mode()
def logits_of(model, pool, steps):
    plan = Plan([Span(1, a.slot, a.length - 1, a.pages) for a in steps], PAGE)
    hidden = model.hidden(torch.tensor([[a.token for a in steps]]), state=pool.state(plan))
    return model.lm_head(hidden.x[0])


def test_steps_of_changing_sequences(model, monkeypatch):
    """Pages, number and order of sequences change from step to step, and with them the sizes of graphs."""
    pool, other = filled_pool(model), filled_pool(model)
    for count, shift in [(7, 1), (2, 2), (9, 3), (9, 4), (9, 5), (1, 6), (30, 7), (7, 8)]:
        steps = ahead(count, shift)
        if shift == 4:
            steps = [a._replace(pages=[*a.pages[::-1], 190 - i], length=1) for i, a in enumerate(steps)][::-1]
        if shift == 5:
            steps = [a._replace(pages=[*a.pages, *range(140, 146)], length=30) for a in steps[:1]] + steps[1:]
        draws = [(GREEDY, None, DRAWN, WHOLE)[i % 4] for i in range(count)]
        got = choose(model, pool, steps, draws)
        logits = op_by_op(monkeypatch, logits_of, model, other, steps)
        assert [token is None for token in got.tokens] == [draw is None for draw in draws]
        if count > 1:
            torch.testing.assert_close(got.logits, logits[1::4], atol=1e-4, rtol=1e-4)
        expected = step_module_draws(logits, draws)
        for token, (wanted, log_prob) in zip(got.tokens, expected, strict=True):
            if token is not None:
                assert token[0] == wanted
                assert token[1] == pytest.approx(log_prob, abs=1e-4)
        assert_same_pools(pool, other, 1e-4)


def step_module_draws(logits, draws):
    """(id, log-probability) of each row by the definition."""
    found = []
    for row, draw in zip(logits.double(), draws, strict=True):
        p = torch.softmax(row[:50] / (draw.temperature if draw and draw.temperature else 1), 0)
        order = p.argsort(descending=True) if draw and draw.top_p < 1 else torch.arange(50)
        if draw is None or draw.temperature == 0:
            token = int(row[:50].argmax())
        else:
            kept = order[: int((p[order].cumsum(0) < draw.top_p).sum()) + 1] if draw.top_p < 1 else order
            kept = kept[p[kept] >= draw.min_p * p.max()]
            ends = p[kept].cumsum(0)
            token = int(kept[int((ends <= draw.uniform * ends[-1]).sum())])
        found.append((token, float(row.log_softmax(0)[token])))
    return found


def test_a_cut_too_deep_for_the_graph_leaves_the_logits(monkeypatch):
    model = LM(ModelConfig(pattern="M", **SIZES | {"vocab_size": 5000, "init_std": 0.01})).init_weights(seed=3).eval()
    steps, draws = ahead(3), [GREEDY, Draw(1.0, 0, 0.95, 0, 0.5), Draw(1.0, 0, 0.1, 0, 0.5)]
    got = choose(model, filled_pool(model), steps, draws, 5000)
    assert [token is None for token in got.tokens] == [False, True, False]
    logits = op_by_op(monkeypatch, logits_of, model, filled_pool(model), steps)
    torch.testing.assert_close(got.logits, logits[1:2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("change", CHANGES)
def test_weights_and_settings_may_change_between_steps(model, monkeypatch, change):
    before = run(model, filled_pool(model), Plan(spans(3), PAGE)).x
    change(model)
    plan = Plan(spans(3), PAGE)
    got = run(model, filled_pool(model), plan)
    assert in_graph(got)
    expected = op_by_op(monkeypatch, run, model, filled_pool(model), plan)
    torch.testing.assert_close(got.x, expected.x, atol=2e-5, rtol=2e-5)
    assert not torch.allclose(before, got.x, atol=1e-4)


@pytest.mark.parametrize("change", APART)
def test_what_a_graph_would_not_see_goes_op_by_op(model, monkeypatch, change):
    run(model, filled_pool(model), Plan(spans(3), PAGE))
    change(model)
    got = run(model, filled_pool(model), Plan(spans(3), PAGE))
    assert not in_graph(got)
    backend, reason = step_module.explain(model)
    assert backend == "op by op"
    assert reason == step_module.why_not(model)
    assert any(word in reason for word in ("hooked", "one piece"))


def test_float64_is_not_rounded(model, monkeypatch):
    model.to_dtype(torch.float64)
    pools = [filled_pool(model, torch.float64) for _ in range(2)]
    got = run(model, pools[0], Plan(spans(3), PAGE))
    expected = op_by_op(monkeypatch, run, model, pools[1], Plan(spans(3), PAGE))
    torch.testing.assert_close(got.x, expected.x, atol=1e-12, rtol=1e-12)
    assert "float64" in (step_module.why_not(model) or "")


def test_pools_take_turns(model, monkeypatch):
    pools, others = ([filled_pool(model, seed=seed) for seed in range(4)] for _ in range(2))
    for i in (0, 1, 2, 1, 3, 0):
        got = run(model, pools[i], Plan(spans(3), PAGE))
        torch.testing.assert_close(got.x, op_by_op(monkeypatch, run, model, others[i], Plan(spans(3), PAGE)).x)
        assert_same_pools(pools[i], others[i], 1e-5)


def test_no_step_while_gradients_are_wanted_or_of_too_many_sequences(model):
    pool = filled_pool(model)
    assert step_module.choosing_step(model, ahead(2), pool, 64, [GREEDY] * 2) is None
    assert choose(model, pool, [], []) is None
    assert choose(model, pool, ahead(1) * 257, [GREEDY] * 257) is None
    assert step_module.most_rows(model) == 256


def test_in_exact_results_sequences_go_alone(model):
    assert choose(model, filled_pool(model), ahead(2), [GREEDY] * 2, exact=True) is None
    assert choose(model, filled_pool(model), ahead(1), [GREEDY], exact=True) is not None


WRONG = [{"token": 64}, {"token": -1}, {"slot": 80}, {"slot": -1}, {"slot": 78}, {"pages": [200, 0, 0]}, {"pages": []}]


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_exist_is_refused_before_anything_changes(model, wrong):
    pool, other, steps = filled_pool(model), filled_pool(model), ahead(3)
    steps[0] = steps[0]._replace(**wrong)
    with pytest.raises((IndexError, ValueError)):
        choose(model, pool, steps, [GREEDY] * 3)
    assert_same_pools(pool, other, 0)
    assert choose(model, pool, ahead(3), [GREEDY] * 3) is not None


def test_experts_of_each_token_are_those_of_the_router(model, monkeypatch):
    plan = Plan(spans(7), PAGE)
    got = choose(model, filled_pool(model), ahead(7), [GREEDY] * 7, experts=True).expert_ids
    routing = op_by_op(monkeypatch, run, model, filled_pool(model), plan).routing
    assert torch.equal(got.long(), torch.stack([stats._expert_ids.view(7, -1) for stats in routing]))


def test_states_are_kept_where_the_plan_says(model, monkeypatch):
    pool, other = filled_pool(model), filled_pool(model)
    plan = Plan([replace(span, saves=((1, i),)) for i, span in enumerate(spans(3))], PAGE)
    assert in_graph(run(model, pool, plan))
    op_by_op(monkeypatch, run, model, other, plan)
    assert_same_pools(pool, other, 1e-5)


def test_an_unknown_setting_is_refused(model, monkeypatch):
    monkeypatch.setenv("NANO3_GRAPHS", "yes")
    with pytest.raises(UserError, match="NANO3_GRAPHS is 'yes'"):
        choose(model, filled_pool(model), ahead(1), [GREEDY])


class Elsewhere:
    """A model, a pool and a batch on a device whose numbers nobody can read: who asks for one gets an error."""

    def __init__(self, dtype=torch.bfloat16, fp8_cache=False):
        device = torch.device("meta")
        with device:
            self.model = LM(ModelConfig(pattern="M*ME-", **SIZES)).to_dtype(dtype).eval()
        if fp8_cache:
            attention = self.model.blocks[1].mixer
            for name in "kv":
                attention.get_submodule(f"{name}_proj").register_buffer(f"{name}_scale", torch.ones((), device=device))
            self.model.use_fp8_cache()
        kv_dtype = torch.float8_e4m3fn if fp8_cache else None
        self.pool = StatePool(self.model.cfg, 9, 20, PAGE, dtype=dtype, kv_dtype=kv_dtype, device=device)
        sizes = graphed._sizes(self.model, self.pool.blocks)
        self.outputs, self.indices = Outputs(8, sizes, device), Indices(8, 4, sizes, device)

    @torch.inference_mode()
    def step(self):
        parts = list(graphed._parts(self.model, self.pool.blocks, self.indices, self.outputs))
        assert parts[-1] == "the output projection"
        for drawn, cut in [(False, False), (True, False), (True, True)]:
            self.outputs.choose(50, self.indices.draws, drawn=drawn, cut=cut)


@pytest.mark.parametrize("fp8_cache", [False, True])
def test_nothing_in_the_step_asks_the_device_for_a_number(fp8_cache):
    Elsewhere(fp8_cache=fp8_cache).step()


ASKS = {
    "item": lambda x: x * x.sum().item(),
    "tolist": lambda x: x * x.flatten()[:1].tolist()[0],
    "if": lambda x: x if x.sum() > 0 else -x,
    "nonzero": lambda x: x + len(x.nonzero()),
    "mask": lambda x: x + x[x > 0].sum(),
    "copy": lambda x: x + x.cpu().sum(),
}


@pytest.mark.parametrize("what", ASKS)
def test_that_would_be_seen(what):
    step = Elsewhere()
    step.model.blocks[4].mixer.forward = lambda x, *_: (ASKS[what](x), None)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        step.step()


def test_backends_without_rows_of_padding_go_op_by_op(model, monkeypatch):
    monkeypatch.setattr(graphed, "PADDED", frozenset())
    assert not in_graph(run(model, filled_pool(model), Plan(spans(3), PAGE)))
    assert "takes no rows of padding" in step_module.explain(model)[1]
