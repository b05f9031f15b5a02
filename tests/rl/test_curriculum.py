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


POOLS = {
    "200 alike": [i % 16 / 16 for i in range(200)],
    "690 alike": [i % 16 / 16 for i in range(690)],
    "2000, most of them hard": [0.0] * 1000 + [0.25] * 500 + [i % 16 / 16 for i in range(500)],
}


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_the_mean_pass_rate_follows_its_target_over_a_run_of_any_length(pool):
    tasks = {f"t{i}": rate for i, rate in enumerate(pool)}
    made = Curriculum(CurriculumSettings(batches=120, batch=32), {"a": tasks})
    zero = 0
    for _ in range(120):
        target, drawn = made.mean, [task for _, task in made.draw()]
        assert len(set(drawn)) == 32
        assert sum(tasks[task] for task in drawn) / 32 == pytest.approx(target, abs=0.08)
        zero += sum(tasks[task] == 0 for task in drawn)
    assert zero / (120 * 32) < 0.05


def test_tasks_of_a_bin_take_turns():
    pool = {f"t{i}": 0.5 if i % 2 else 0.0 for i in range(40)}
    made = Curriculum(CurriculumSettings(batches=8, batch=5, start_mean=0.55, end_mean=0.55, sigma=0.01), {"a": pool})
    drawn = [task for _ in range(8) for _, task in made.draw()]
    assert {drawn.count(task) for task, rate in pool.items() if rate} == {2}
    assert drawn[:20] != sorted(drawn[:20], key=lambda task: int(task[1:]))


def test_a_limit_of_draws_lets_a_task_rest_until_all_have_as_many():
    pool = {f"t{i}": i / 10 for i in range(10)}
    for most in (1, 3):
        made = Curriculum(CurriculumSettings(batches=20, batch=5, most_draws=most), {"a": pool})
        drawn = [task for _ in range(4 * most) for _, task in made.draw()]
        assert {drawn.count(task) for task in pool} == {2 * most}
        assert {drawn[: 10 * most].count(task) for task in pool} == {most}


def test_tasks_that_always_pass_are_never_drawn():
    made, tasks = curriculum(batches=100), rates()
    assert all(tasks[d][task] < 1 for _ in range(30) for d, task in made.draw())


def test_a_domain_of_a_small_share_is_drawn_as_often_as_its_share_says():
    made = Curriculum(CurriculumSettings(batches=50, batch=16), rates(), {"math": 98.0, "code": 2.0})
    of_code = [[domain for domain, _ in made.draw()].count("code") for _ in range(50)]
    assert sum(of_code) == 16
    assert set(of_code) == {0, 1}


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


def test_a_new_profile_keeps_the_rates_of_what_it_did_not_measure():
    made = curriculum()
    made.profile({"math": {"m0": 0.5}})
    assert made.rates["math"] == rates()["math"] | {"m0": 0.5}
    assert made.rates["code"] == rates()["code"]
    with pytest.raises(UserError, match="poetry"):
        made.profile({"poetry": {"p": 0.5}})


def test_a_domain_that_has_become_too_easy_rests_until_it_is_no_longer(caplog):
    made = curriculum()
    made.profile({"math": dict.fromkeys(rates()["math"], 1.0)})
    assert "every task of math passes" in caplog.text
    made = Curriculum.restore(json.loads(json.dumps(made.state())))
    assert [domain for domain, _ in made.draw()] == ["code"] * 16
    made.profile({"math": {"m7": 0.5}})
    assert {task for domain, task in made.draw() if domain == "math"} == {"m7"}


def test_where_all_domains_have_become_too_easy_their_rates_stay(caplog):
    made, other = curriculum(), curriculum()
    made.profile({domain: dict.fromkeys(tasks, 1.0) for domain, tasks in rates().items()})
    assert "math, code" in caplog.text
    assert made.draw() == other.draw()


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
