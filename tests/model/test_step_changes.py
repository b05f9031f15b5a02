"""Weights, settings and modules may change between decoding steps."""

import pytest
import torch
from torch import nn

from nano3.config.model import ModelConfig
from nano3.model.lm import LM
from nano3.model.state.plan import Plan
from tests.model.steps import (
    HAVE,
    PAGE,
    SIZES,
    STILL_ONE_CALL,
    assert_same_pools,
    biased,
    both,
    changed_in_place,
    converted,
    filled_pool,
    gate_choices,
    gate_eps,
    gate_scale,
    in_one_call,
    loaded,
    narrowed,
    one_eps,
    other_eps,
    replaced_blocks,
    replaced_method,
    replaced_mixer,
    replaced_parameters,
    run,
    spans,
    spread,
    swapped_data,
    transposed,
)


@pytest.fixture
def model():
    return LM(ModelConfig(pattern="M*ME-", **SIZES)).init_weights(seed=3).eval()


def test_the_compute_dtype_may_change_between_steps(model, monkeypatch):
    model.to_dtype(torch.bfloat16)
    run(model, filled_pool(model, torch.bfloat16), Plan(spans(5), PAGE))
    model.compute_dtype = torch.float32
    (got, _), (expected, _) = both(model, monkeypatch, spans(5))
    torch.testing.assert_close(got.x, expected.x, atol=2e-5, rtol=2e-5)


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
