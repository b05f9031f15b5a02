"""What a judge is asked and what it says, whichever judge it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from nano3.rl.environments.base import Task
from nano3.rl.genrm import Judgement


class JudgeStoppedError(Exception):
    """A judge does not answer any more, after all its tries. The run itself is sound: it can be saved, and go on once
    the judge is back. The message is one line."""


@dataclass(frozen=True)
class Comparison:
    """Two responses to one prompt."""

    environment: str
    """Name of the task's environment."""
    task: Task
    response_1: str
    """Final answers, without the reasoning before them; empty ones too."""
    response_2: str


@dataclass(frozen=True)
class Verdict:
    """What a judge said of a comparison."""

    judgement: Judgement | None
    """None: it cannot be read."""
    text: str = ""
    """What was said, for people: the whole output where it is a model's."""
    weights_version: int | None = None
    """Of a local model: GenerationEngine.weights_changed counts it."""


@runtime_checkable
class PairJudge(Protocol):
    """Compares responses."""

    @property
    def calls(self) -> int:
        """Comparisons that it gave a verdict on since it was made, one by one; none of a try that failed."""
        ...

    def compare(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        """A verdict on each, in order.

        Raises:
            JudgeStoppedError: it does not answer.
            UserError: it cannot judge these tasks.
        """
        ...
