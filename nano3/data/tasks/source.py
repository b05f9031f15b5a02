"""A generator with its settings: tasks by index, training and held-out ones apart."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from nano3.config.errors import UserError
from nano3.data.tasks.task import Draft, Generator, Message, Task, content_hash

HELDOUT_FRACTION = 0.1
"""Share of the contents that training never sees."""
VERSION = 4
"""Raised with every change of what the generators make, so that prepared data are made anew."""
CHECKED = "Let me check."
"""Stands between the reasoning of a long trace and its repetition."""
TRIES = 1000
DRAWS_PER_TASK = 20
"""Draws for each of the tasks that have to differ, before a generator counts as exhausted."""

Split = Literal["train", "heldout"]
Trace = Literal["short", "long", "mixed"]


@dataclass(frozen=True)
class TaskSource:
    """Tasks of one generator; each depends on the settings here and on its index alone."""

    generator: Generator
    seed: int = 0
    split: Split = "train"
    """Which tasks: no content of one split is in the other, whatever their seeds, levels and traces."""
    levels: tuple[int, ...] = ()
    """Levels to draw from evenly; empty: the generator's own."""
    trace: Trace = "short"
    """Reasoning of the solutions: worked once, worked twice (long), or either by turns at random (mixed). The tasks are
    the same in all three."""
    turns: int = 1
    """Tasks in a row to train on, as turns of one conversation whose template keeps the reasoning of all of
    them: one description of tools for several."""

    def __post_init__(self) -> None:
        lowest, highest = self.generator.levels[0], self.generator.hardest
        for level in self.levels:
            if not lowest <= level <= highest:
                raise UserError(
                    f"generate:{self.generator.name} has no level {level}: levels are {lowest} to {highest} "
                    f"({self.generator.level})"
                )
        for what, value, kinds in (("split", self.split, Split), ("trace", self.trace, Trace)):
            if value not in get_args(kinds):
                raise UserError(f"{what} is {value!r}; it must be one of {', '.join(get_args(kinds))}")
        if self.turns < 1:
            raise UserError(f"turns is {self.turns}; it must be at least 1")

    def task(self, index: int) -> Task:
        """Task number `index`, from 0 on without end.

        Raises:
            UserError: the generator makes no task for this split at these levels.
        """
        levels = self.levels or self.generator.levels
        for attempt in range(TRIES):
            rng = random.Random(f"{self.generator.name} {self.seed} {self.split} {index} {attempt}")
            level = levels[rng.randrange(len(levels))]
            draft = self.generator.make(rng, level)
            if split_of(draft) == self.split:
                return self._task(draft, level, long=self._is_long(rng))
        raise UserError(f"generate:{self.generator.name} makes no {self.split} task at levels {levels}")

    def tasks(self, count: int, start: int = 0) -> Iterator[Task]:
        """Tasks `start` to `start + count - 1`; one may come twice."""
        return (self.task(index) for index in range(start, start + count))

    def rows(self, count: int) -> Iterator[dict[str, Any]]:
        """Rows of chat data with the first `count` tasks and their solutions, `turns` in each but the last."""
        for start in range(0, count, self.turns):
            yield _joined(list(self.tasks(min(self.turns, count - start), start)))

    def distinct(self, count: int) -> list[Task]:
        """The first `count` tasks that differ.

        Raises:
            UserError: the generator has not so many.
        """
        found: dict[str, Task] = {}
        for index in range(count * DRAWS_PER_TASK):
            if len(found) == count:
                break
            task = self.task(index)
            found.setdefault(task.id, task)
        if len(found) < count:
            raise UserError(
                f"generate:{self.generator.name} has only some {len(found)} different {self.split} tasks at levels "
                f"{self.levels or self.generator.levels}: ask for fewer than {count}, or for other levels"
            )
        return list(found.values())

    def identity(self) -> str:
        """All that decides the tasks, for caches."""
        levels = self.levels or self.generator.levels
        return json.dumps(
            [
                self.generator.name,
                VERSION,
                self.seed,
                self.split,
                levels,
                self.trace,
                self.turns,
            ]
        )

    def _is_long(self, rng: random.Random) -> bool:
        return self.trace == "long" or (self.trace == "mixed" and rng.random() < 0.5)

    def _task(self, draft: Draft, level: int, long: bool) -> Task:
        prompt, tools = list(draft.prompt), list(draft.tools)
        what = json.dumps([prompt, tools, draft.truth], sort_keys=True)
        return Task(
            generator=self.generator.name,
            id=f"{self.generator.name}-{content_hash(what)}",
            content=content_hash(draft.content or what),
            level=level,
            prompt=prompt,
            tools=tools,
            truth=draft.truth,
            solution=[_lengthened(message) if long else message for message in draft.solution],
        )


def split_of(draft: Draft) -> Split:
    """The split that a task belongs to, by a hash of its content."""
    share = int(content_hash(draft.content), 16) / 2**64
    return "heldout" if draft.content and share < HELDOUT_FRACTION else "train"


def _joined(tasks: Sequence[Task]) -> dict[str, Any]:
    """One row of all tasks, with the tools of all of them."""
    rows = [task.row() for task in tasks]
    if len(rows) == 1:
        return rows[0]
    joined = {"messages": [message for row in rows for message in row["messages"]], "tasks": [r["task"] for r in rows]}
    tools = {json.dumps(tool, sort_keys=True): tool for task in tasks for tool in task.tools}
    kept = {**joined, "chat_template_kwargs": {"truncate_history_thinking": False}}
    return kept | ({"tools": list(tools.values())} if tools else {})


def _lengthened(message: Message) -> Message:
    reasoning = message.get("reasoning_content")
    if not reasoning:
        return message
    return message | {"reasoning_content": f"{reasoning}\n{CHECKED}\n{reasoning}"}


def parse_levels(text: str) -> tuple[int, ...]:
    """`3-7` or `3,5,8` or both as levels.

    Raises:
        UserError: neither.
    """
    levels: list[int] = []
    for part in text.split(","):
        low, dash, high = part.partition("-")
        if not low.strip().isdecimal() or (dash and not high.strip().isdecimal()):
            raise UserError(f"levels are {text!r}; write them as 3-7 or 3,5,8")
        levels += range(int(low), int(high or low) + 1)
    if not levels:
        raise UserError(f"levels are {text!r}, which names none; write them as 3-7 or 3,5,8")
    return tuple(dict.fromkeys(levels))


def options(given: dict[str, str], where: str) -> dict[str, Any]:
    """What stands behind the `?` of a source, as arguments of TaskSource.

    Raises:
        UserError: another option than levels, trace and turns, or turns that are no number.
    """
    unknown = [name for name in given if name not in _OPTIONS]
    if unknown:
        raise UserError(f"{where}: there is no option {unknown[0]!r}; there are {', '.join(_OPTIONS)}")
    return {name: _OPTIONS[name](value) for name, value in given.items()}


def _parse_turns(text: str) -> int:
    if not text.strip().isdecimal():
        raise UserError(f"turns is {text!r}; it must be a number")
    return int(text)


_OPTIONS: dict[str, Callable[[str], Any]] = {"levels": parse_levels, "trace": str, "turns": _parse_turns}
