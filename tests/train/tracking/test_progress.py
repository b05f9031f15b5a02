from dataclasses import replace

import pytest

from nano3.report import clock, count
from nano3.train.tracking.progress import Lines, Status, describe

pytestmark = pytest.mark.any_isa

STATUS = Status(
    step=5,
    steps=10,
    tokens=81920,
    loss=3.21,
    lr=1e-3,
    tokens_per_second=12_345,
    mfu=0.41,
    seconds_left=75,
    bits_per_byte=2.5,
)


def test_a_line_tells_everything():
    line = describe(STATUS)
    for part in (
        "step 5/10",
        "81.9K tokens",
        "loss 3.210",
        "2.500 bits/byte",
        "12.3K tokens/s",
        "mfu 41%",
        "1m15s left",
    ):
        assert part in line


@pytest.mark.parametrize(("value", "text"), [(7, "7"), (999, "999"), (4.1e6, "4.1M"), (2.5e13, "25T"), (1234, "1.23K")])
def test_counts_are_short(value, text):
    assert count(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(42, "42s"), (192, "3m12s"), (18240, "5h04m"), (-1, "0s")])
def test_durations_are_short(seconds, text):
    assert clock(seconds) == text


def test_plain_lines_go_to_stderr_and_do_not_flood_it(capsys):
    lines = Lines()
    for _ in range(50):
        lines.show(STATUS)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1


def test_a_loss_that_is_no_likelihood_has_its_own_name():
    line = describe(replace(STATUS, loss=-0.02134, loss_name="policy_loss"))
    assert "policy loss -0.0213  " in line
