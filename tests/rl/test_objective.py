"""Clip, importance masks and KL: values of golden/rl.json, and what holds for any input."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nano3.rl.objective import clipped_surrogate, k3_divergence, masked_importance_weights, masked_sequences

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "rl.json").read_text())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", GOLDEN["clipped_surrogate_loss_0.2_0.28"], ids=str)
def test_golden_clip(case, dtype):
    ratio, advantage = (torch.tensor(case[name], dtype=dtype) for name in ("ratio", "advantage"))
    assert clipped_surrogate(ratio, advantage).item() == pytest.approx(case["expected"], rel=1e-6)


def test_golden_importance_weights():
    case = GOLDEN["masked_importance_weights_0.5_5"]
    assert masked_importance_weights(torch.tensor(case["weights"])).tolist() == case["expected"]


def test_importance_bounds_are_inside_and_what_is_no_number_is_masked():
    weights = torch.tensor([0.5, 5.0, math.nan, math.inf, 0.0], requires_grad=True)
    found = masked_importance_weights(weights)
    assert found.tolist() == [0.5, 5.0, 0.0, 0.0, 0.0]
    assert not found.requires_grad


@given(st.floats(0.01, 20), st.floats(-5, 5))
@settings(deadline=None)
def test_clipping_never_promises_more_than_the_ratio_gives(ratio, advantage):
    ratio = torch.tensor(ratio, dtype=torch.float64, requires_grad=True)
    loss = clipped_surrogate(ratio, advantage)
    assert loss.item() >= (-ratio * advantage).item() - 1e-12
    loss.backward()
    outside = float(ratio.detach()) > 1.28 if advantage > 0 else float(ratio.detach()) < 0.8
    assert ratio.grad is not None
    assert float(ratio.grad) == (0.0 if outside and advantage else pytest.approx(-advantage))


@given(st.lists(st.floats(-8, -1e-3), min_size=1, max_size=8), st.data())
@settings(deadline=None, max_examples=50)
def test_k3_is_never_negative_and_0_where_equal(log_probs, data):
    policy = torch.tensor(log_probs, dtype=torch.float64)
    other = torch.tensor([data.draw(st.floats(-8, -1e-3)) for _ in log_probs], dtype=torch.float64)
    assert (k3_divergence(policy, other) >= 0).all()
    assert not k3_divergence(policy, policy).any()


def test_k3_is_the_divergence_in_the_mean():
    policy, reference = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.2, 0.6]).double()
    exact = (policy * (policy / reference).log()).sum()
    mean = (policy * k3_divergence(policy.log(), reference.log())).sum()
    assert mean.item() == pytest.approx(exact.item())


def test_a_sequence_is_masked_by_its_mean_over_kept_tokens():
    # Row 0: sequence 0 is far off on one of two kept tokens (mean (e^2 + 1) / 2 = 4.2), sequence 1 agrees, and is wrong
    # only where nothing is trained. Row 1: its sequence 0 is another one, off by log 2 exactly.
    differences = torch.tensor([[2.0, 0.0, 0.0, 9.0], [-math.log(2), math.log(2), math.log(2), 0.0]]).double()
    kept = torch.tensor([[True, True, True, False], [True, True, True, False]])
    sequences = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 1]], dtype=torch.int32)
    assert masked_sequences(differences, kept, sequences, 2.001).tolist() == [[True, True, False, False], [False] * 4]
    assert masked_sequences(differences, kept, sequences, 1.9).tolist() == [
        [True, True, False, False],
        [True, True, True, False],
    ]
    differences[0, 2] = math.nan
    assert masked_sequences(differences, kept, sequences, 100.0).tolist()[0] == [False, False, True, False]
