"""A decoding step that chooses the next tokens too."""

import pytest
import torch
from nano3.kernels.cpu.draw import Draw, draw_tokens

from nano3.config.model import ModelConfig
from nano3.model import step as step_module
from nano3.model.lm import LM
from nano3.model.state.plan import Plan, Span
from tests.model.steps import (
    HAVE,
    PAGE,
    SIZES,
    assert_same_pools,
    changed_in_place,
    converted,
    filled_pool,
    loaded,
    narrowed,
    replaced_blocks,
    run,
    spans,
    swapped_data,
)


@pytest.fixture
def model():
    return LM(ModelConfig(pattern="M*ME-", **SIZES)).init_weights(seed=3).eval()


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
