"""Made tasks of `nano3.data.tasks` as an environment: the same tasks, checks and split as in supervised tuning."""

from __future__ import annotations

from collections.abc import Sequence

from nano3.config.generate import PREFIX
from nano3.data.tasks.catalogue import find_tasks
from nano3.data.tasks.source import Split
from nano3.rl.environments.base import Message, Reward, Rollout, Task


class GeneratedTasks:
    """Tasks of one generator, all different; the reward is its check's, from 0 to 1."""

    def __init__(self, source: str, n: int = 200, seed: int = 0, split: Split = "train") -> None:
        """
        Args:
            source: `generate:NAME`, with options behind a `?`: `generate:count?levels=3-7`.
            n: tasks.
            seed: other seeds give other tasks, some of which may be the same.
            split: train or heldout: no task of one is in the other, whatever their seeds.

        Raises:
            UserError: no such generator, level, option or split, or the generator has not so many tasks.
        """
        found = find_tasks(source, seed, split)
        self._generator = found.generator
        self.name = PREFIX + found.generator.name
        self._tasks = [Task(task.id, tuple(task.prompt), task.truth, tuple(task.tools)) for task in found.distinct(n)]

    def tasks(self) -> Sequence[Task]:
        """All."""
        return self._tasks

    def step(self, task: Task, rollout: Rollout) -> Sequence[Message]:
        """Results of the tools that were called."""
        return self._generator.respond(task.truth, rollout.messages)

    def verify(self, task: Task, rollout: Rollout) -> Reward:
        """What the generator's check gives."""
        return Reward(self._generator.check(task.truth, rollout.messages))
