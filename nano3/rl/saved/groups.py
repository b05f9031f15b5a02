"""The groups of a run's saved rollouts, and which of them are asked for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nano3.config.errors import UserError
from nano3.rl.rollout_files import FOLDER, SavedSample, read_rollouts, step_of


@dataclass(frozen=True)
class SavedGroup:
    """The samples of one prompt."""

    samples: list[SavedSample]
    """One or more."""

    @property
    def step(self) -> int:
        """Number of the optimizer step, from 1."""
        return self.samples[0].step

    @property
    def environment(self) -> str:
        """Its name."""
        return self.samples[0].environment

    @property
    def task(self) -> str:
        """Its id."""
        return self.samples[0].task

    @property
    def fault(self) -> str:
        """Kind of the first fault, for which the group was dropped. Empty: none."""
        return next((sample.fault for sample in self.samples if sample.fault), "")

    @property
    def rewards(self) -> list[float]:
        """Of the samples that have one."""
        return [sample.reward.value for sample in self.samples if sample.reward is not None]

    @property
    def passes(self) -> int:
        """Samples that solve the task."""
        return sum(passed(sample) for sample in self.samples)

    @property
    def no_variance(self) -> bool:
        """All rewards are equal, so nothing was learnt from the group."""
        return not self.fault and len(set(self.rewards)) <= 1

    @property
    def advantages(self) -> list[float] | None:
        """Of the samples, as the update had them; None for a group that was dropped. Loads torch."""
        if self.fault or len(self.samples) < 2:
            return None
        import torch

        from nano3.rl.advantage import group_advantages

        return group_advantages(torch.tensor([self.rewards], dtype=torch.float64))[0].tolist()


def passed(sample: SavedSample) -> bool:
    """Whether it solves its task."""
    return bool(sample.reward and sample.reward.passed)


def saved_steps(run: Path) -> dict[int, Path]:
    """File of rollouts by step, in order.

    Raises:
        UserError: no such folder, or no rollouts in it.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such folder; give the folder of a run of nano3 rlvr or rlhf")
    found = {}
    for path in (run / FOLDER).glob("step-*.jsonl"):
        if (step := step_of(path)) is not None:
            found[step] = path
    if not found:
        files = f"{FOLDER}/step-*.jsonl"
        raise UserError(f"{run} has no rollouts (no {files}): it is no run of nano3 rlvr or rlhf that did a step")
    return dict(sorted(found.items()))


def chosen_steps(steps: dict[int, Path], first: int | None, last: int | None) -> dict[int, Path]:
    """Those from `first` to `last`, each of which may be left open.

    Raises:
        UserError: there is none.
    """
    low, high = min(steps), max(steps)
    first, last = low if first is None else first, high if last is None else last
    found = {step: path for step, path in steps.items() if first <= step <= last}
    if not found:
        asked = f"step {first}" if first == last else f"steps {first} to {last}"
        raise UserError(f"no rollouts of {asked}: there are {len(steps)} files, of steps {low} to {high}")
    return found


def read_groups(path: Path) -> Iterator[SavedGroup]:
    """The groups of a file, in order. Raises as read_rollouts."""
    samples: list[SavedSample] = []
    for sample in read_rollouts(path):
        if samples and not _same_group(samples[-1], sample):
            yield SavedGroup(samples)
            samples = []
        samples.append(sample)
    if samples:
        yield SavedGroup(samples)


@dataclass(frozen=True)
class Selection:
    """Which samples are asked for; of what is left open, all."""

    environment: str | None = None
    task: str | None = None
    index: int | None = None
    passed: bool | None = None
    truncated: bool | None = None

    @property
    def of_samples(self) -> bool:
        """Whether it asks for certain samples of a group."""
        return not (self.index is self.passed is self.truncated is None)

    def may_be_in(self, path: Path) -> bool:
        """Whether such samples may be in a file: it has the names of environment and task somewhere. Far faster than to
        read its samples."""
        names = [json.dumps(name).encode() for name in (self.environment, self.task) if name is not None]
        if not names:
            return True
        text = path.read_bytes()
        return all(name in text for name in names)

    def groups(self, groups: Iterable[SavedGroup]) -> Iterator[tuple[SavedGroup, list[SavedSample]]]:
        """Groups that have such samples, with these samples."""
        for group in groups:
            if self.environment not in (None, group.environment) or self.task not in (None, group.task):
                continue
            if chosen := [sample for sample in group.samples if self._takes(sample)]:
                yield group, chosen

    def _takes(self, sample: SavedSample) -> bool:
        return (
            self.index in (None, sample.index)
            and (self.passed is None or self.passed == passed(sample))
            and (self.truncated is None or self.truncated == sample.truncated)
        )


def _same_group(before: SavedSample, sample: SavedSample) -> bool:
    """A step may draw a task twice: a group's samples are in the order of their indices."""
    one, other = (before.environment, before.task), (sample.environment, sample.task)
    return one == other and sample.index > before.index
