"""What a person sees while a model trains: a live display on a terminal, plain lines elsewhere; all on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from nano3.report import clock, count

APART = "  "
LINE_SECONDS = 5.0
"""Seconds between two plain lines."""


@dataclass(frozen=True)
class Status:
    """The state of a run after a step."""

    step: int
    """Steps done."""
    steps: int
    """Steps of the whole run; an estimate where steps have different numbers of tokens."""
    tokens: int
    """Tokens done."""
    loss: float
    """What the loss of the step shows."""
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
    loss_name: str = "loss"
    """Which metric `loss` is."""
    first: Mapping[str, float] = field(default_factory=dict)
    """Metrics by name that matter more than the loss: where there are any, they stand first and the loss last."""


class Progress:
    """Where the trainer reports to. This one does nothing with it."""

    def show(self, status: Status) -> None:
        """A step is done."""

    def score(self, done: int, total: int, place: str) -> None:
        """So many of the sequences of the last scoring of held-out text are done; `place`: which text, if several."""

    def say(self, message: str) -> None:
        """A line for the user."""

    def close(self) -> None:
        """No more comes."""


class Silent(Progress):
    """Reports nothing: ranks other than the first, and tests."""


class Lines(Progress):
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


def describe(status: Status) -> str:
    """One line about a step."""
    return f"step {status.step}/{status.steps}  {details(status)}"


def details(status: Status) -> str:
    """Tokens, losses, rate, utilisation and time left in a line."""
    return APART.join(part.text for part in parts(status))


@dataclass(frozen=True)
class Part:
    """One fact of a line."""

    text: str
    turn: int
    """Order in which parts are left out where there is no room, 1 first; 0: never."""


def parts(status: Status) -> list[Part]:
    """What `details` tells, one by one."""
    if status.first:
        figures = [Part(f"{_words(name)} {value:.3f}", 6 if "/" in name else 0) for name, value in status.first.items()]
        rate = Part(f"{count(status.tokens_per_second)} tokens/s", 3)
        left = Part(f"{clock(status.seconds_left)} left", 0)
        return [*figures, Part(f"{count(status.tokens)} tokens", 2), rate, left, Part(shown_loss(status), 1)]
    found = [Part(f"{count(status.tokens)} tokens", 4), Part(shown_loss(status), 0)]
    if status.bits_per_byte is not None:
        found.append(Part(f"held-out {status.bits_per_byte:.3f} bits/byte", 3))
    return [
        *found,
        Part(f"lr {status.lr:.2e}", 2),
        Part(f"{count(status.tokens_per_second)} tokens/s", 5),
        Part(f"mfu {status.mfu:.0%}", 1),
        Part(f"{clock(status.seconds_left)} left", 0),
    ]


def _words(name: str) -> str:
    """A metric's name to be read: `zero variance`, and of pass_rate/count `count`."""
    return name.rpartition("/")[2].replace("_", " ")


def shown_loss(status: Status) -> str:
    """The loss with its name: `loss 2.310`, `policy loss -0.0213`."""
    digits = ".3f" if status.loss_name == "loss" else ".3g"
    return f"{status.loss_name.replace('_', ' ')} {status.loss:{digits}}"


def fitting(found: list[Part], width: int) -> str:
    """A line of as many of these parts as `width` letters hold, left out in turn; one that is too long is cut."""
    for turn in sorted({part.turn for part in found}):
        line = APART.join(part.text for part in found if not part.turn or part.turn > turn)
        if len(line) <= width:
            break
    return line[: max(width, 0)]
