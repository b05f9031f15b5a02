"""Leave-one-out advantages: values of golden/rl.json, and what holds for any rewards."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nano3.rl.advantage import group_advantages, has_no_variance

CASES = json.loads((Path(__file__).parents[1] / "golden" / "rl.json").read_text())["group_advantage_leave_one_out"]
REWARDS = st.lists(st.sampled_from([0.0, 0.1, 0.3, 0.6, 0.75, 0.95, 1.0]), min_size=2, max_size=16)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case["rewards"]))[:40])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_golden(case, dtype, tolerance):
    found = group_advantages(torch.tensor([case["rewards"]], dtype=dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found, torch.tensor([case["expected"]], dtype=dtype), rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("common", [0.1, 0.3, 0.6, 0.7, 0.75, 0.95])
@pytest.mark.parametrize("n", [3, 8, 16, 33])
def test_a_single_other_reward_is_not_divided_by_what_rounding_leaves(common, n, dtype):
    rewards = torch.full((1, n), common, dtype=dtype)
    rewards[0, -1] = 0.0
    found = group_advantages(rewards)
    assert found[0, -1] == pytest.approx(-common, abs=1e-6)
    assert found.abs().max() <= n


def test_rows_do_not_mix_and_whole_numbers_become_float32():
    rows = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0]])
    together = group_advantages(rows)
    assert together.dtype == torch.float32
    for row, found in zip(rows, together, strict=True):
        assert torch.equal(group_advantages(row[None])[0], found)
    assert has_no_variance(rows).tolist() == [False, True, False]


@given(REWARDS, st.sampled_from([torch.float32, torch.float64]))
@settings(deadline=None, max_examples=100)
def test_properties(rewards, dtype):
    rows = torch.tensor([rewards], dtype=dtype)
    found = group_advantages(rows)[0]
    # A reward above that of all others is good, below all of them bad, and equal rewards have equal advantages.
    for i, reward in enumerate(rows[0]):
        others = torch.cat([rows[0, :i], rows[0, i + 1 :]])
        if bool((reward > others).all()):
            assert found[i] > 0
        if bool((reward < others).all()):
            assert found[i] < 0
    for i, j in zip(range(len(rewards)), range(1, len(rewards)), strict=False):
        if rewards[i] == rewards[j]:
            assert float(found[i]) == pytest.approx(float(found[j]), rel=1e-5)
    if has_no_variance(rows).item():
        assert not found.any()
    order = torch.randperm(len(rewards), generator=torch.Generator().manual_seed(len(rewards)))
    torch.testing.assert_close(group_advantages(rows[:, order])[0], found[order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wrong", [torch.zeros(3), torch.zeros(2, 1), torch.zeros(1, 2, 3)])
def test_refuses_other_shapes(wrong):
    with pytest.raises(ValueError, match="2 samples or more"):
        group_advantages(wrong)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_refuses_rewards_without_a_number(wrong):
    with pytest.raises(ValueError, match="NaN or infinite"):
        group_advantages(torch.tensor([[1.0, wrong, 0.0]]))
