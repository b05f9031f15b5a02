"""The bar on terminals of several widths."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from nano3.train.tracking.live import Live
from nano3.train.tracking.progress import Status

pytestmark = pytest.mark.any_isa

STATUS = Status(
    step=5, steps=500, tokens=16_384, loss=5.735, lr=5e-4, tokens_per_second=3610, mfu=0.32, seconds_left=3599,
    bits_per_byte=2.345,
)  # fmt: skip
ALL = (
    "train",
    "1%",
    "16.4K tokens",
    "loss 5.735",
    "held-out 2.345",
    "lr 5.00e-04",
    "3.61K tokens/s",
    "mfu 32%",
    "59m59s left",
)


def last_line(width: int, draw) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, legacy_windows=False)
    live = Live(console)
    draw(live)
    live.close()
    lines = console.file.getvalue().replace("\r", "\n").replace("\x1b[2K", "").replace("\x1b[?25h", "").splitlines()
    return [line for line in lines if line.strip()][-1].rstrip()


@pytest.mark.parametrize(("width", "dropped"), [(160, []), (120, [5, 7]), (80, [4, 5, 7]), (64, [2, 4, 5, 7])])
def test_percent_loss_and_time_left_are_there_and_what_does_not_fit_is_left_out(width, dropped):
    line = last_line(width, lambda live: live.show(STATUS))
    assert len(line) <= width
    assert [part in line for part in ALL] == [number not in dropped for number in range(len(ALL))]


def test_a_run_without_held_out_text_shows_its_rate_at_80_columns():
    line = last_line(80, lambda live: live.show(replace(STATUS, bits_per_byte=None)))
    assert "16.4K tokens  loss 5.735  3.61K tokens/s  59m59s left" in line


def test_the_last_scoring_is_no_step_of_training():
    line = last_line(80, lambda live: live.score(2, 4, " at 512"))
    assert line.startswith("score")
    assert line.endswith(" 50% scoring held-out text at 512")
