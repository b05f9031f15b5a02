"""What a person sees while a model trains: a live display on a terminal, plain lines elsewhere; all on stderr."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Protocol

from nano3.report import clock, count

LINE_SECONDS = 5.0
"""Seconds between two plain lines."""


@dataclass(frozen=True)
class Status:
    """The state of a run after a step."""

    step: int
    """Steps done."""
    steps: int
    """Steps of the whole run."""
    tokens: int
    """Tokens done."""
    loss: float
    """Training loss of the step, in nats a token."""
    lr: float
    """Learning rate of the step."""
    tokens_per_second: float
    """Smoothed rate."""
    mfu: float
    """Model FLOP utilisation in [0, 1]."""
    seconds_left: float
    """Estimate at the present rate."""
    bits_per_byte: float | None
    """Last held-out result."""


class Progress(Protocol):
    """Where the trainer reports to."""

    def show(self, status: Status) -> None: ...

    def say(self, message: str) -> None: ...

    def close(self) -> None: ...


class Silent:
    """Reports nothing: ranks other than the first, and tests."""

    def show(self, status: Status) -> None:
        """Ignore a step."""

    def say(self, message: str) -> None:
        """Ignore a message."""

    def close(self) -> None:
        """Nothing to close."""


class Lines:
    """One line every few seconds, for logs."""

    def __init__(self) -> None:
        self._last = float("-inf")

    def show(self, status: Status) -> None:
        """Print the status, unless a line was printed a moment ago; the last step always prints."""
        if time.monotonic() - self._last < LINE_SECONDS and status.step < status.steps:
            return
        self._last = time.monotonic()
        print(describe(status), file=sys.stderr, flush=True)

    def say(self, message: str) -> None:
        """Print a message."""
        print(message, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing to close."""


class Live:
    """A bar that stays in place on a terminal; messages scroll above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[text]}"),
            console=Console(stderr=True),
            transient=False,
        )
        self._task = self._bar.add_task("train", text="first step ...")
        self._bar.start()

    def show(self, status: Status) -> None:
        """Redraw the bar."""
        self._bar.update(self._task, total=status.steps, completed=status.step, text=details(status))

    def say(self, message: str) -> None:
        """Print a message above the bar."""
        self._bar.console.print(message, markup=False, highlight=False)

    def close(self) -> None:
        """Leave the last state on the screen."""
        self._bar.stop()


def make_progress(is_main: bool) -> Progress:
    """Live on a terminal, lines elsewhere, nothing on ranks other than the first."""
    if not is_main:
        return Silent()
    return Live() if sys.stderr.isatty() else Lines()


def describe(status: Status) -> str:
    """One line about a step."""
    return f"step {status.step}/{status.steps}  {details(status)}"


def details(status: Status) -> str:
    """Tokens, losses, rate, utilisation and time left in a line."""
    parts = [f"{count(status.tokens)} tokens", f"loss {status.loss:.3f}"]
    if status.bits_per_byte is not None:
        parts.append(f"held-out {status.bits_per_byte:.3f} bits/byte")
    parts += [f"lr {status.lr:.2e}", f"{count(status.tokens_per_second)} tokens/s", f"mfu {status.mfu:.0%}"]
    parts.append(f"{clock(status.seconds_left)} left")
    return "  ".join(parts)
