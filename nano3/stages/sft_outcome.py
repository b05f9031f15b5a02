"""What `nano3 sft` leaves beside its folder: what became of the data, and how many held-out tasks are solved."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nano3.data.chat.sets import SetReport
from nano3.stages.answers import TaskScore
from nano3.train.position import Result


@dataclass(frozen=True)
class SftResult:
    """What a run came to."""

    run_dir: Path
    """The run folder."""
    training: Result
    """Steps, tokens, losses and rates."""
    sets: list[SetReport] = field(default_factory=list)
    """What became of each data set; on the main rank."""
    epochs: dict[str, float] = field(default_factory=dict)
    """Times that the run went through each data set."""
    answers: dict[str, TaskScore] = field(default_factory=dict)
    """Held-out tasks of the data sets that nano3 made."""

    @property
    def model_dir(self) -> Path:
        """The Hugging Face folder of the trained model."""
        return self.run_dir / "model"

    def summary(self) -> dict[str, Any]:
        """The result as JSON values."""
        training, heldout = self.training, self.training.heldout
        return {
            "run": str(self.run_dir),
            "model": None if training.interrupted else str(self.model_dir),
            **training.summary(),
            "heldout_tokens": heldout.targets if heldout else None,
            "data": [report.values() | {"epochs": round(self.epochs[report.name], 3)} for report in self.sets],
            "answers": {
                name: {
                    "tasks": score.tasks,
                    "solved": round(score.rate, 4),
                    "by_level": {
                        str(level): round(sum(found) / len(found), 4) for level, found in sorted(score.by_level.items())
                    },
                }
                for name, score in self.answers.items()
            },
        }
