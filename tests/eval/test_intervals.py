"""Intervals cover what they promise, and have a width where samples are alike."""

from __future__ import annotations

import itertools
import math
import random
import tracemalloc

import pytest
from scipy import stats

from nano3.eval.intervals import (
    bootstrap_means,
    difference_of_few,
    difference_of_others,
    mean_of_means,
    middle95,
    standard_error,
    student95,
    wilson,
)


def test_wilson_of_known_counts():
    low, high = wilson(0.8, 10)  # 8 of 10, as in textbooks
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert wilson(1.0, 100)[0] == pytest.approx(0.9630, abs=1e-4)
    assert wilson(1.0, 100)[1] == 1.0


@pytest.mark.parametrize("n", [1, 7, 50, 2000])
def test_wilson_is_that_of_scipy(n):
    for right in {0, 1, n // 3, n - 1, n}:
        expected = stats.binomtest(right, n).proportion_ci(method="wilson")
        assert wilson(right / n, n) == (pytest.approx(expected.low, abs=1e-9), pytest.approx(expected.high, abs=1e-9))


def test_student_is_that_of_scipy():
    for n in (1, 2, 5, 10, 29, 30, 31, 60, 1000):
        assert student95(n) == pytest.approx(stats.t.ppf(0.975, n), abs=1.5e-3)


def test_the_ends_of_none_and_of_all_are_exact():
    for n in range(1, 200):
        assert wilson(0.0, n)[0] == 0.0
        assert wilson(1.0, n)[1] == 1.0
    mean, low, high = mean_of_means([[0.0] * 25, [0.0] * 7])
    assert (mean, low) == (0.0, 0.0)
    assert mean_of_means([[1.0] * 25, [1.0] * 7])[2] == 1.0
    assert 0 < high < 1


def test_bootstrap_of_the_same_seed_is_the_same_and_close_to_the_normal_interval():
    rng = random.Random(0)
    values = [float(rng.random() < 0.7) for _ in range(400)]
    first, again = (bootstrap_means(values, 3) for _ in range(2))
    assert (first == again).all()
    low, high = middle95(first)
    error = standard_error(values)
    mean = sum(values) / len(values)
    assert low == pytest.approx(mean - 1.96 * error, abs=0.006)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.006)


def test_one_value_has_no_standard_error():
    assert standard_error([1.0]) is None


def exact_p(differences: list[float]) -> float:
    """McNemar's exact test, two-sided."""
    up, down = differences.count(1.0), differences.count(-1.0)
    tail = sum(math.comb(up + down, k) for k in range(min(up, down) + 1)) / 2 ** (up + down)
    return min(1.0, 2 * tail)


@pytest.mark.parametrize("n", range(1, 10))
def test_few_pairs_differ_only_where_the_exact_test_says_so(n):
    for up in range(n + 1):
        for down in range(n + 1 - up):
            differences = [1.0] * up + [-1.0] * down + [0.0] * (n - up - down)
            low, high = difference_of_few([differences])
            assert low <= sum(differences) / n <= high
            assert low < high
            if low > 0 or high < 0:
                assert exact_p(differences) < 0.05
    low, _ = difference_of_few([[1.0] * n])
    assert (low > 0) == (n >= 6)


def test_one_sample_of_each_task_is_no_proof():
    low, high = difference_of_few([[1.0], [0.0], [1.0], [1.0]])
    assert low < 0
    assert high > 0.75


def test_few_samples_of_two_models_without_a_difference_rarely_differ():
    chance = 0.0
    for first, other in itertools.product(range(6), repeat=2):
        low, high = difference_of_others([[1.0] * first + [0.0] * (5 - first)], [[1.0] * other + [0.0] * (5 - other)])
        assert low <= (other - first) / 5 <= high
        chance += (low > 0 or high < 0) * math.comb(5, first) * math.comb(5, other) / 4**5
    assert chance < 0.05
    assert difference_of_others([[0.0]], [[1.0]])[0] < 0


def test_many_samples_do_not_take_many_times_their_memory():
    values = [0.0, 1.0] * 20_000
    tracemalloc.start()
    drawn = bootstrap_means(values, 0)
    assert tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()
    assert drawn.shape == (2000,)
    assert drawn.std() == pytest.approx(0.5 / 200, rel=0.1)
