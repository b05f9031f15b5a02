"""Saved rollouts measured again, without a model: by the environments of today, whose code may have changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from nano3.config.errors import UserError
from nano3.rl.asking import ask_all
from nano3.rl.environments.base import Environment, Reward, Task
from nano3.rl.environments.registry import Source
from nano3.rl.rollout_files import SavedSample

EQUAL, CHANGED, FAULT, NEW = "equal", "changed", "fault", "new"
"""A sample has the reward that it had, another one, none any more, or one where it had none."""
AT_ONCE = 1024
"""Samples in memory."""
NO_TASK, NO_REWARD = "no such task", "no reward"


@dataclass(frozen=True)
class Rescored:
    """A saved sample with its reward of today."""

    saved: SavedSample
    reward: Reward | None
    fault: str = ""
    """Kind, where there is no reward."""
    message: str = ""

    @property
    def outcome(self) -> str:
        """EQUAL, CHANGED, FAULT or NEW. Parts of rewards are for people and not compared."""
        before, now = self.saved.reward, self.reward
        if now is None:
            return FAULT
        if before is None:
            return NEW
        return EQUAL if (before.value, before.passed) == (now.value, now.passed) else CHANGED


@dataclass
class Counts:
    """What became of an environment's samples."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    """By kind."""
    before: float = 0.0
    """Sum of the rewards of samples that have one both times."""
    now: float = 0.0

    def add(self, one: Rescored) -> None:
        """Count a sample."""
        self.outcomes[one.outcome] += 1
        if one.fault:
            self.faults[one.fault] += 1
        elif one.saved.reward and one.reward:
            self.before += one.saved.reward.value
            self.now += one.reward.value

    def table(self) -> dict[str, Any]:
        """As JSON values; means None where no sample has a reward both times."""
        both = self.outcomes[EQUAL] + self.outcomes[CHANGED]
        return {
            "samples": self.outcomes.total(),
            **{name: self.outcomes[name] for name in (EQUAL, CHANGED, FAULT, NEW)},
            "reward_before": self.before / both if both else None,
            "reward_now": self.now / both if both else None,
            "faults": dict(self.faults),
        }


def rescore(
    samples: Iterable[SavedSample], environments: Mapping[str, Environment], workers: int = 4, seconds: float = 600.0
) -> Iterator[Rescored]:
    """Each sample with the reward that it gets now, or why it gets none.

    Args:
        samples: in any order.
        environments: by the name under which samples were saved.
        workers: threads in which environments measure.
        seconds: for one reward.

    Raises:
        UserError: a sample's environment is not among them.
    """
    tasks = {name: {task.id: task for task in environment.tasks()} for name, environment in environments.items()}
    left = iter(samples)
    while part := list(islice(left, AT_ONCE)):
        yield from _rescore(part, environments, tasks, workers, seconds)


def differences(saved: Source, today: Source) -> list[str]:
    """In what the code that measured then and that of today differ, in words; empty: in nothing."""
    found = []
    if saved.package != today.package:
        found.append(f"package {saved.package or 'none'} -> {today.package or 'none'}")
    if saved.version != today.version:
        found.append(f"{today.package or 'version'} {saved.version or 'none'} -> {today.version or 'none'}")
    if saved.sha256 != today.sha256:
        found.append(f"code {saved.sha256[:8] or 'none'} -> {today.sha256[:8] or 'none'}")
    for name in sorted(saved.requires.keys() | today.requires.keys()):
        before, now = saved.requires.get(name, "none"), today.requires.get(name, "none")
        found += [f"{name} {before} -> {now}"] if before != now else []
    return found


def _rescore(
    samples: Sequence[SavedSample],
    environments: Mapping[str, Environment],
    tasks: Mapping[str, Mapping[str, Task]],
    workers: int,
    seconds: float,
) -> Iterator[Rescored]:
    for sample in samples:
        if sample.environment not in environments:
            raise UserError(f"no environment for the saved rollouts of {sample.environment}")
    able = [sample for sample in samples if sample.task in tasks[sample.environment]]
    questions = [
        partial(environments[s.environment].verify, tasks[s.environment][s.task], s.rollout) for s in able
    ]  # fmt: skip
    answers = iter(ask_all(questions, workers, seconds))
    for sample in samples:
        if sample.task not in tasks[sample.environment]:
            yield Rescored(sample, None, NO_TASK, f"{sample.environment} has no task {sample.task} today")
            continue
        answer = next(answers)
        if answer.fault or isinstance(answer.value, Reward):
            yield Rescored(sample, answer.value, answer.fault, answer.message)
        else:
            yield Rescored(sample, None, NO_REWARD, f"verify gave {answer.value!r:.200}")
