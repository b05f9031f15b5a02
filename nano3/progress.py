"""What a person sees of work that takes a while: a bar on a terminal, a line now and then elsewhere; all on stderr."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from typing import Any, Self

from nano3.report import clock, count

LINE_SECONDS = 10.0
"""Seconds between two plain lines."""
RECENT_SECONDS = 60.0
"""The time left goes by the speed in so many last seconds: a long prompt gets slower with each token before it."""
FEW, FEW_SECONDS = 10, 3.0
"""Requests and seconds without an estimate of the time left."""


class Progress:
    """Counts samples and what they cost; the time left goes by cost, since a long prompt takes longer than a short
    one. Also counts the part of long prompts that is computed, so that a prompt of a million tokens shows movement."""

    def __init__(self, samples: int, cost: float, unit: str = "tokens", things: str = "samples") -> None:
        """Begin to count.

        Args:
            samples: to be answered.
            cost: of all of them together, in `unit`.
            unit: what cost is counted in.
            things: what samples are called.
        """
        self.samples, self.cost, self.unit, self.things = samples, max(cost, 1.0), unit, things
        self.done, self.spent, self.under_way, self.now = 0, 0.0, 0.0, ""
        self._start = time.monotonic()
        self._last = self._start
        self._marks: deque[tuple[float, float]] = deque([(0.0, 0.0)])  # seconds and cost spent, the oldest first
        self._bar: Any = None
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            self._bar, self._task = _bar(self.cost)

    def sample(self, cost: float, what: str = "") -> None:
        """One more sample is done."""
        self.done, self.spent, self.now = self.done + 1, self.spent + cost, what
        self.under_way = max(0.0, self.under_way - cost)
        self._show(self.done == self.samples)

    def tick(self, under_way: float) -> None:
        """Some of the cost of samples that are not done yet is spent."""
        self.under_way = under_way
        self._show(False)

    def say(self, message: str) -> None:
        """Print a message beside the progress."""
        if self._bar is not None:
            self._bar.console.print(message, markup=False, highlight=False)
        else:
            print(message, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def line(self, seconds: float) -> str:
        """All of it in a line, `seconds` after the start."""
        spent = min(self.cost, self.spent + self.under_way)
        parts = [self._counted(spent)]
        if self.now:
            parts.append(self.now)
        # The first requests wait for what comes before all of them, and many end together.
        least = min(FEW, self.cost) if self.unit == self.things else 1
        if spent >= least and seconds >= FEW_SECONDS:
            left = (self.cost - spent) / self._recent_rate(seconds, spent)
            parts += [f"{count(spent / seconds)} {self.unit}/s", f"{clock(left)} left"]
        return "  ".join(parts)

    def _counted(self, spent: float) -> str:
        return f"{self.done}/{self.samples} {self.things}"

    def _recent_rate(self, seconds: float, spent: float) -> float:
        """Cost a second lately; of the whole time where little of it is known."""
        self._marks.append((seconds, spent))
        while len(self._marks) > 2 and self._marks[1][0] <= seconds - RECENT_SECONDS:
            self._marks.popleft()
        since, before = self._marks[0]
        if seconds - since < RECENT_SECONDS / 2 or spent <= before:
            return spent / seconds
        return (spent - before) / (seconds - since)

    def _show(self, last: bool) -> None:
        now = time.monotonic()
        if self._bar is not None:
            spent = min(self.cost, self.spent + self.under_way)
            self._bar.update(self._task, completed=spent, text=self.line(now - self._start))
        elif last or now - self._last >= LINE_SECONDS:
            self._last = now
            print(self.line(now - self._start), file=sys.stderr, flush=True)


class Amount(Progress):
    """How far one thing has come: bytes of a preparation."""

    def __init__(self, what: str, total: float, unit: str) -> None:
        """Begin with nothing of `total`, counted in `unit`."""
        super().__init__(1, total, unit, what)

    def reach(self, done: float) -> None:
        """So much of it is done."""
        self.tick(done)

    def _counted(self, spent: float) -> str:
        return f"{self.things}: {count(spent)} of {count(self.cost)} {self.unit}"


def _bar(cost: float) -> tuple[Any, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(bar_width=24), TaskProgressColumn(), TextColumn("{task.fields[text]}"))
    bar = Bar(*columns, console=Console(stderr=True), transient=True)
    bar.start()
    return bar, bar.add_task("samples", total=cost, text="")
