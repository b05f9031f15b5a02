"""Rates and model FLOP utilisation."""

import pytest

from nano3.train.tracking.throughput import Meter

pytestmark = pytest.mark.any_isa


def test_rates_and_utilisation_of_steps():
    meter = Meter(peak=100.0)
    first = meter.add(tokens=10, seconds=2.0, flops=50.0)
    assert first == {"seconds": 2.0, "tokens_per_second": 5.0, "mfu": 0.25}
    meter.add(tokens=10, seconds=1.0, flops=50.0)
    assert meter.rate == pytest.approx(0.9 * 5 + 0.1 * 10)
    assert meter.mfu == pytest.approx(0.9 * 0.25 + 0.1 * 0.5)
    assert (meter.seconds, meter.tokens) == (3.0, 20)


def test_a_peak_that_was_measured_in_a_bad_moment_is_raised_by_what_is_reached():
    meter = Meter(peak=10.0)
    assert meter.add(tokens=1, seconds=1.0, flops=40.0)["mfu"] == 1.0
    assert meter.add(tokens=1, seconds=2.0, flops=40.0)["mfu"] == 0.5
