"""Intervals cover what they promise, and have a width where samples are alike."""

from __future__ import annotations

import random

import pytest

from nano3.eval.intervals import bootstrap_means, middle95, standard_error, wilson


def test_wilson_of_known_counts():
    low, high = wilson(0.8, 10)  # 8 of 10, as in textbooks
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert wilson(1.0, 100)[0] == pytest.approx(0.9630, abs=1e-4)
    assert wilson(1.0, 100)[1] == 1.0


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
