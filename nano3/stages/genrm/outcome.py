"""The result of `nano3 rlhf genrm`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nano3.stages.policy.outcome import RlvrResult

RATES = ("steps", "tokens", "seconds", "tokens_per_second")
"""What the summary says of each part of the run."""


@dataclass(frozen=True)
class GenrmResult:
    """What a run came to."""

    run_dir: Path
    """The run folder."""
    pairs: dict[str, int]
    """Numbers: train, heldout, refused."""
    warm_start: dict[str, Any]
    """Summary of the supervised start (SftResult.summary)."""
    grpo: RlvrResult | None = None
    """None: the run was interrupted before it."""
    judging: dict[str, Any] = field(default_factory=dict)
    """Scores of the held-out pairs (nano3.stages.genrm.figures), on the main rank; empty before the first."""

    @property
    def model_dir(self) -> Path:
        """The Hugging Face folder of the judge."""
        return self.run_dir / "model"

    @property
    def interrupted(self) -> bool:
        """A signal ended the run early; a resume continues it."""
        return bool(self.warm_start["interrupted"] or (self.grpo and self.grpo.training.interrupted))

    def summary(self) -> dict[str, Any]:
        """The result as JSON values."""
        grpo = self.grpo.summary() if self.grpo else {}
        finished = bool(grpo) and not self.interrupted and not grpo["stopped"]
        return {
            "run": str(self.run_dir),
            "model": str(self.model_dir) if finished else None,
            "interrupted": self.interrupted,
            "stopped": grpo.get("stopped"),
            "last_good_checkpoint": grpo.get("last_good_checkpoint"),
            "last_good_step": grpo.get("last_good_step"),
            "pairs": self.pairs,
            "warm_start": {name: self.warm_start[name] for name in RATES},
            "grpo": {name: grpo[name] for name in RATES} if grpo else None,
            "judging": self.judging or None,
        }
