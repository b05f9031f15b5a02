"""Mathematics with one right answer, compared by value (math-verify) in a process that can be killed."""

from __future__ import annotations

import importlib.util
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from nano3.config.errors import UserError
from nano3.data.tasks.source import Split
from nano3.installation import install_command
from nano3.rl.environments.base import NOTHING, Reward, Rollout, Task, all_or_nothing, check_ids
from nano3.rl.environments.made import given_or_made
from nano3.rl.environments.rows import Row, column, task_of
from nano3.rl.environments.worker.process import Worker

LONGEST = 2000
"""Characters of an answer that is looked at; no right one is longer."""
BOXED = "\\boxed{"


class Math:
    """The last \\boxed{...} of the answer, or its last line where it has none, against the truth.

    Columns: a prompt, and `answer` (also `expected_answer`, `solution`, `ground_truth`).
    """

    name = "math"

    def __init__(
        self,
        rows: str | Path | Iterable[Row] | None = None,
        n: int = 200,
        seed: int = 0,
        split: Split | None = None,
        seconds: float = 5.0,
    ) -> None:
        """
        Args:
            rows: a jsonl file or its rows; None: sums and products made here.
            n, seed: of those.
            split: train or heldout, which share no prompt; None: train of made ones, all of given ones.
            seconds: for one comparison; an answer that takes longer is wrong.

        Raises:
            UserError: a row without prompt or answer, or math-verify is not installed.
        """
        if importlib.util.find_spec("math_verify") is None:
            raise UserError(f"environment math: math-verify is not installed: {install_command('rl')}")
        found = given_or_made(rows, _made, n, seed, split, self.name)
        self._tasks = [_task(row, i) for i, row in enumerate(found)]
        check_ids(self._tasks, self.name)
        self._worker = Worker("math", seconds)

    def tasks(self) -> Sequence[Task]:
        """All."""
        return self._tasks

    def verify(self, task: Task, rollout: Rollout) -> Reward:
        """1 for an equal value, else 0."""
        answer, truth = final_answer(rollout.answer), str(task.truth)
        if not answer or len(answer) > LONGEST:
            return NOTHING
        if answer == truth:
            return all_or_nothing(True, answer=answer)
        return all_or_nothing(self._worker.ask({"truth": truth, "answer": answer}) is True, answer=answer)


def final_answer(text: str) -> str:
    """What stands in the last \\boxed{...}, else the last line that is not empty; "" for a box that is not closed."""
    start = text.rfind(BOXED)
    if start < 0:
        lines = text.strip().splitlines()
        return lines[-1].strip() if lines else ""
    depth, begin = 1, start + len(BOXED)
    for place in range(begin, min(len(text), begin + LONGEST)):
        depth += (text[place] == "{") - (text[place] == "}")
        if not depth:
            return text[begin:place].strip()
    return ""


def _task(row: Row, number: int) -> Task:
    where = f"environment math, row {number + 1}"
    truth = str(column(row, "answer", "expected_answer", "solution", "ground_truth", where=where))
    return task_of(row, final_answer(truth), where)


def _made(rng: random.Random) -> Iterator[Row]:
    for i in itertools.count():
        a, b, c = (rng.randrange(1, 10 ** (1 + i % 3)) for _ in range(3))
        question, truth = (f"{a} + {b} * {c}", a + b * c) if i % 2 else (f"{a} + {b} - {c}", a + b - c)
        yield {"prompt": f"What is {question}? Put the final answer in \\boxed{{}}.", "answer": str(truth)}
