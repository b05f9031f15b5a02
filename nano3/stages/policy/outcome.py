"""What runs of reinforcement learning come to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nano3.rl.training.profile import Verdict
from nano3.stages.policy.scores import Score
from nano3.train.checkpoint.checkpointer import step_of
from nano3.train.position import Result
from nano3.train.tracking.metrics import numbers, read_metrics

ENDS = 0.1
"""Share of the steps that stand for a run's beginning, and for its end."""
FIGURES = ("reward", "quality", "think_tokens", "final_tokens", "truncated", "unread", "entropy", "policy_loss")


@dataclass(frozen=True)
class PolicyResult:
    """What a run came to."""

    run_dir: Path
    """The run folder."""
    training: Result
    """Steps, tokens and rates."""
    scores: list[Score] = field(default_factory=list)
    """Held-out tasks before and after."""
    stopped: str = ""
    """Why the run ended before its last step, where nobody interrupted it: by a stop rule, or since a judge or every
    server does not answer. Empty: it did not."""
    last_good: Path | None = None
    """Of a stopped run: the newest checkpoint from before the trouble began; None where there is none."""
    paused: bool = False
    """It stopped since the judge, or every server of its rollouts, does not answer: it goes on as it is."""

    @property
    def model_dir(self) -> Path:
        """The Hugging Face folder of the trained model."""
        return self.run_dir / "model"

    def summary(self) -> dict[str, Any]:
        """The result as JSON values."""
        finished = not (self.training.interrupted or self.stopped)
        training = self.training.summary()
        return {
            "run": str(self.run_dir),
            "model": str(self.model_dir) if finished else None,
            **{name: training[name] for name in ("interrupted", "steps", "tokens", "seconds", "tokens_per_second")},
            "stopped": self.stopped or None,
            "paused": self.paused,
            "last_good_checkpoint": str(self.last_good) if self.last_good else None,
            "last_good_step": step_of(self.last_good) if self.last_good else None,
            "heldout": [asdict(score) | {"verdict": score.verdict} for score in self.scores],
        }


@dataclass(frozen=True)
class RlvrResult(PolicyResult):
    """What a run of `nano3 rlvr` came to."""

    profile: list[Verdict] = field(default_factory=list)
    """Pass rates before the run; on the main rank."""

    def summary(self) -> dict[str, Any]:
        """The result as JSON values."""
        return super().summary() | {"profile": _verdicts(self.profile)}


@dataclass(frozen=True)
class RlhfResult(PolicyResult):
    """What a run of `nano3 rlhf` came to."""

    heldout_judge: str = ""
    """Who scored held-out prompts."""
    unread: bool = False
    """It stopped since the judge's answers cannot be read: it goes on with another judge."""

    def summary(self) -> dict[str, Any]:
        """The result as JSON values."""
        told = {"unread": self.unread, "heldout_judge": self.heldout_judge or None}
        return super().summary() | told | {"rollouts": rollout_figures(self.run_dir)}


@dataclass(frozen=True)
class ProfileResult:
    """What `nano3 rlvr profile` comes to."""

    file: Path
    profile: list[Verdict] = field(default_factory=list)
    faults: dict[str, int] = field(default_factory=dict)
    stopped: str = ""
    """Why it ended early, without a profile; empty: it did not."""

    def summary(self) -> dict[str, Any]:
        """The result as JSON values."""
        stopped = self.stopped or None
        return {
            "file": None if stopped else str(self.file),
            "stopped": stopped,
            "profile": _verdicts(self.profile),
            "faults": self.faults,
        }


def _verdicts(profile: list[Verdict]) -> list[dict[str, Any]]:
    return [asdict(verdict) | {"verdict": verdict.word} for verdict in profile]


def rollout_figures(run_dir: Path) -> dict[str, Any]:
    """Figures of the rollouts, means over the first tenth of the steps and the last: {"steps": in each of the two,
    "figures": {NAME: [first, last]}, "judge_calls": in all}."""
    train = [line for line in read_metrics(run_dir / "metrics.jsonl") if line["kind"] == "train"]
    n = max(1, round(ENDS * len(train)))
    figures = {}
    for name in FIGURES:
        ends = [[line[name] for line in numbers(part, name)] for part in (train[:n], train[-n:])]
        if all(ends):
            figures[name] = [sum(values) / len(values) for values in ends]
    calls = sum(line["judge_calls"] for line in numbers(train, "judge_calls"))
    return {"steps": n, "figures": figures, "judge_calls": calls}
