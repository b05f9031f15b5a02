"""Tasks by pass rate: values of golden/rl.json, and what a run of batches looks like."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nano3.config.errors import UserError
from nano3.rl.curriculum import Curriculum, CurriculumSettings, largest_remainder, linear_mean, target_counts

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "rl.json").read_text())["curriculum_target_counts"]


@pytest.mark.parametrize("case", [case for case in GOLDEN if "batch" in case], ids=lambda case: str(case["mean"]))
def test_golden_counts(case):
    assert target_counts(case["bin_centers"], case["mean"], case["sigma"], case["batch"]) == case["expected"]


def test_golden_mean():
    [case] = [case for case in GOLDEN if "linear_mean" in case]
    falling = [linear_mean(number=i, **case["linear_mean"]) for i in range(5)]
    assert falling == pytest.approx(case["expected"])
    assert linear_mean(0.75, 0.25, 5, 9) == 0.25


def test_what_a_bin_cannot_give_goes_to_the_fullest_bins():
    centers = [0.125, 0.375, 0.625, 0.875]
    assert target_counts(centers, 0.875, 0.05, 6, [10, 4, 0, 2]) == [4, 0, 0, 2]
    assert target_counts(centers, 0.875, 0.05, 12, [10, 4, 0, 2]) == [8, 2, 0, 2]
    assert target_counts(centers, 0.875, 0.05, 99, [10, 4, 0, 2]) == [10, 4, 0, 2]


@given(st.data())
@settings(deadline=None)
def test_counts_are_a_batch_within_what_there_is(data):
    n = data.draw(st.integers(1, 12))
    centers = [(i + 0.5) / n for i in range(n)]
    mean, sigma = data.draw(st.floats(-1, 2)), data.draw(st.floats(1e-6, 5))
    batch = data.draw(st.integers(0, 300))
    free = target_counts(centers, mean, sigma, batch)
    assert sum(free) == batch
    assert min(free) >= 0
    capacities = data.draw(st.lists(st.integers(0, 60), min_size=n, max_size=n))
    bounded = target_counts(centers, mean, sigma, batch, capacities)
    assert sum(bounded) == min(batch, sum(capacities))
    assert all(0 <= count <= room for count, room in zip(bounded, capacities, strict=True))
    # A bin gets more than its share only of what others could not give.
    if all(count <= room for count, room in zip(free, capacities, strict=True)):
        assert bounded == free


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=9), st.integers(0, 100))
def test_largest_remainder_is_within_one_of_the_exact_share(shares, total):
    for count, share in zip(largest_remainder(shares, total), shares, strict=True):
        assert abs(count - total * share / sum(shares)) < 1


@pytest.mark.parametrize("wrong", [{"sigma": 0.0}, {"batch": -1}, {"capacities": [1]}, {"capacities": [1, -1]}])
def test_refuses_what_has_no_meaning(wrong):
    with pytest.raises(ValueError, match=r"sigma|capacities"):
        target_counts(**({"bin_centers": [0.2, 0.8], "mean": 0.5, "sigma": 0.1, "batch": 4} | wrong))


def rates(n=300):
    """Two domains with rates from 0 to 1, 1 included."""
    return {
        "math": {f"m{i}": (i % 21) / 20 for i in range(n)},
        "code": {f"c{i}": (i % 11) / 10 for i in range(n)},
    }


def curriculum(**changes):
    options = {"batches": 10, "batch": 16, "start_mean": 0.8, "end_mean": 0.2, "sigma": 0.1, "seed": 3}
    return Curriculum(CurriculumSettings(**(options | changes)), rates(), {"math": 3.0, "code": 1.0})


def test_the_mean_pass_rate_of_drawn_tasks_falls_with_the_target_in_each_domain():
    tasks, made = rates(), curriculum()
    means = {"math": [], "code": []}
    for _ in range(10):
        target = made.mean
        drawn = made.draw()
        assert [d for d, _ in drawn].count("math") == 12
        for domain, found in means.items():
            of_domain = [tasks[d][task] for d, task in drawn if d == domain]
            found.append(sum(of_domain) / len(of_domain) - target)
    for found in means.values():
        assert max(map(abs, found)) < 0.12


def test_tasks_that_always_pass_are_never_drawn_and_none_twice_in_an_epoch():
    made, tasks = curriculum(batches=100), rates()
    below_one = sum(rate < 1 for rate in tasks["math"].values())
    batches = [made.draw() for _ in range(30)]
    assert all(tasks[d][task] < 1 for batch in batches for d, task in batch)
    of_math = [[task for d, task in batch if d == "math"] for batch in batches]
    epoch = [task for batch in of_math[: below_one // 12] for task in batch]
    assert len(set(epoch)) == len(epoch)
    assert sum(map(len, of_math)) == 30 * 12 > below_one


def test_more_than_all_tasks_are_drawn_over_again():
    made = Curriculum(CurriculumSettings(batches=2, batch=7), {"a": {"x": 0.5, "y": 0.0, "z": 1.0}})
    drawn = [task for _, task in made.draw()]
    assert len(drawn) == 7
    assert min(drawn.count("x"), drawn.count("y")) == 3


def test_a_saved_curriculum_goes_on_as_if_it_had_not_stopped():
    whole, first = curriculum(stall_batches=2), curriculum(stall_batches=2)
    expected = []
    for made, n in ((whole, 8), (first, 3)):
        for i in range(n):
            expected.append(made.draw())
            made.note_reward(0.1 * min(i, 2))
    again = Curriculum.restore(json.loads(json.dumps(first.state())))
    assert again.stalled == first.stalled
    for i in range(3, 8):
        assert again.draw() == expected[i]
        again.note_reward(0.1 * min(i, 2))
    assert again.state() == whole.state()
    assert again.stalled


def test_a_reward_that_stops_rising_asks_for_new_pass_rates():
    made = curriculum(stall_batches=3)
    for reward in (0.1, 0.1, 0.1, 0.3, 0.3, 0.3):
        assert not made.stalled
        made.note_reward(reward)
    assert not made.stalled
    for reward in (0.3, 0.3, 0.3):
        made.note_reward(reward)
    assert made.stalled
    made.profile({domain: dict.fromkeys(tasks, 0.5) for domain, tasks in rates().items()})
    assert not made.stalled
    assert not curriculum(stall_batches=0).stalled


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"math": {"a": 1.0, "b": 1.0}}, "too easy"),
        ({"math": {}}, "too easy"),
        ({"math": {"a": 1.2}}, r"math task a is 1\.2"),
    ],
)
def test_refuses_rates_that_teach_nothing(wrong, message):
    with pytest.raises(UserError, match=message):
        Curriculum(CurriculumSettings(batches=2, batch=2), wrong)


def test_refuses_shares_of_other_domains():
    with pytest.raises(UserError, match="shares of code"):
        Curriculum(CurriculumSettings(batches=2, batch=2), {"math": {"a": 0.0}}, {"code": 1.0})
