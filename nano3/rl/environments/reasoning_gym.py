"""Any task of reasoning-gym (arXiv 2505.24760), scored by its own rules; partial credit is kept."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from nano3.config.errors import UserError
from nano3.data.tasks.source import Split
from nano3.installation import install_command
from nano3.rl.environments.base import EnvironmentFaultError, Reward, Rollout, Task, check_ids, user
from nano3.rl.environments.made import is_in, most_draws
from nano3.rl.environments.worker.process import Worker

ANSWER_TAGS = ("<answer>", "</answer>")


class ReasoningGym:
    """Entries of reasoning-gym data sets; the reward is the data set's score, and a task passes at `pass_score`."""

    name = "reasoning_gym"

    def __init__(
        self,
        task: str | Sequence[str] = ("chain_sum", "spell_backward"),
        n: int = 100,
        seed: int = 0,
        split: Split = "train",
        config: Mapping[str, Any] | None = None,
        pass_score: float = 1.0,
        seconds: float = 10.0,
    ) -> None:
        """
        Args:
            task: one name, or some.
            n, seed: different entries of each, and of which seed.
            split: train or heldout: a question of one is never in the other, whatever the seeds.
            config: settings of the data sets (levels and the like); all of them have to know these.
            pass_score: least score that counts as solved.
            seconds: for one score; an answer that takes longer is wrong.

        Raises:
            UserError: reasoning-gym is not installed, or there is no such task or split, or it has not so many entries.
        """
        if importlib.util.find_spec("reasoning_gym") is None:
            raise UserError(f"environment reasoning_gym: reasoning-gym is not installed: {install_command('rl')}")
        self._worker, self._pass_score = Worker("reasoning_gym", seconds), pass_score
        self._tasks: list[Task] = []
        for name in [task] if isinstance(task, str) else task:
            self._tasks += self._entries(name, {**(config or {}), "seed": seed, "size": most_draws(n)}, n, split)
        check_ids(self._tasks, self.name)

    def tasks(self) -> Sequence[Task]:
        """All."""
        return self._tasks

    def verify(self, task: Task, rollout: Rollout) -> Reward:
        """The data set's score of the answer: what stands in its last <answer> tags, or all of it."""
        score = self._worker.ask({**task.truth, "answer": _answer(rollout.answer)})
        value = min(1.0, max(0.0, score)) if isinstance(score, float) else 0.0
        return Reward(value, value >= self._pass_score, {"score": score})

    def _entries(self, name: str, config: Mapping[str, Any], n: int, split: Split) -> list[Task]:
        """The first `n` entries of a data set that differ and are of the split."""
        found: dict[str, Task] = {}
        for index in range(config["size"]):
            if len(found) == n:
                break
            task = self._made({"task": name, "config": config, "index": index})
            question = task.messages[0]["content"]
            if is_in(split, [name, question], self.name):
                found.setdefault(question, task)
        if len(found) < n:
            raise UserError(
                f"environment reasoning_gym: {name} has only {len(found)} different {split} entries among "
                f"{config['size']}: ask for fewer than {n}, or set its levels"
            )
        return list(found.values())

    def _made(self, truth: Mapping[str, Any]) -> Task:
        try:
            entry = self._worker.ask(truth)
        except EnvironmentFaultError as error:
            raise UserError(f"environment reasoning_gym: {error}") from error
        if entry is None:
            raise UserError(
                f"environment reasoning_gym: {truth['task']} with {truth['config']} makes no data set: is the name "
                "right, and does it know these settings?"
            )
        return Task(f"{truth['task']}-{truth['config']['seed']}-{truth['index']}", user(entry["question"]), truth)


def _answer(text: str) -> str:
    start, end = ANSWER_TAGS
    inner = text.rpartition(start)[2].partition(end)[0] if start in text else text
    return inner.strip()
