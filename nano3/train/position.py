"""Where a run is, and what it came to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nano3.train.heldout import HeldoutScore


@dataclass
class Position:
    """How far a run is; saved in every checkpoint."""

    step: int = 0
    """Optimizer steps done."""
    tokens: int = 0
    """Tokens trained on in this run."""
    schedule_start: int = 0
    """Position of this run's first token on a schedule that counts tokens."""
    schedule_start_step: int = 0
    """Position of this run's first step on a schedule that counts steps."""
    seconds: float = 0.0
    """Training time, over all resumes."""


@dataclass(frozen=True)
class RunLength:
    """Where a run ends: after so many steps or, where that is 0, so many tokens."""

    tokens: int
    """Tokens, unless `steps` is set."""
    steps: int = 0
    """Optimizer steps."""

    def reached(self, step: int, tokens: int) -> bool:
        """Whether a run ends that is there."""
        return step >= self.steps if self.steps else tokens >= self.tokens

    def total_steps(self, position: Position) -> int:
        """Steps of the whole run: by tokens an estimate from the steps so far, exact where all are equally large."""
        if self.steps:
            return self.steps
        left = max(0, self.tokens - position.tokens)
        return position.step - (-left * position.step // max(1, position.tokens))


@dataclass(frozen=True)
class Result:
    """What a run came to."""

    step: int
    """Optimizer steps done."""
    tokens: int
    """Tokens trained on."""
    interrupted: bool
    """Whether SIGTERM or Ctrl-C ended the run early; a checkpoint was saved, and `resume` continues it."""
    loss: float | None
    """What the loss showed at the last step of this process; of next-token training nats a target."""
    heldouts: dict[int, HeldoutScore]
    """Held-out scores at the end, by sequence length; empty without held-out text, or when interrupted."""
    seconds: float
    """Training time, without evaluation and checkpoints."""
    tokens_per_second: float
    """Mean rate of this process, over all ranks."""

    def summary(self) -> dict[str, Any]:
        """What every stage tells of it, as JSON values."""
        heldout = self.heldout
        return {
            "interrupted": self.interrupted,
            "steps": self.step,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 2),
            # A resume of a finished run makes no step.
            "tokens_per_second": round(self.tokens_per_second, 1) or None,
            "train_loss": self.loss,
            "heldout_loss": heldout.loss if heldout else None,
        }

    @property
    def heldout(self) -> HeldoutScore | None:
        """The score of the run: at the first of the lengths."""
        return next(iter(self.heldouts.values()), None)
