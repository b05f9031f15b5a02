"""Which held-out tasks are asked, and how."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nano3.config.errors import UserError
from nano3.config.generate import PREFIX
from nano3.data.tasks.catalogue import find_tasks
from nano3.data.tasks.source import VERSION
from nano3.data.tasks.task import Task, content_hash
from nano3.engine.request import ThinkingBudget
from nano3.eval.store import SampleKey

DEFAULT = ("count", "spell", "sort", "json", "tool", "talk")
"""What the default recipe of `nano3 sft` teaches."""
ON, OFF = "on", "off"
GRACE = 2
"""Tokens beyond a budget within which a line may end."""
GROWING = ("sets.", "samples")
"""Settings of a folder that say how much is done."""


@dataclass(frozen=True)
class Plan:
    """Tasks, all of the held-out split, and how they are answered."""

    sets: Sequence[str] = DEFAULT
    """Sources without the prefix `generate:`, as `count?levels=3-5`; each is a row of the result."""
    samples: int = 160
    """Tasks of each, all different."""
    seed: int = 0
    """Of the tasks, and of the samples above temperature 0."""
    thinking: str = ON
    """on, off, or a budget in tokens."""
    max_tokens: int = 256
    """Most tokens of one answer, reasoning included."""
    temperature: float = 0.0
    """0: greedy."""

    @property
    def kind_of_thinking(self) -> bool | ThinkingBudget:
        """For `nano3.eval.tasks.answer.answer`."""
        if self.thinking in (ON, OFF):
            return self.thinking == ON
        return ThinkingBudget(int(self.thinking), GRACE)

    @cached_property
    def tasks(self) -> dict[str, list[Task]]:
        """By source.

        Raises:
            UserError: no such generator or level, or it has not so many.
        """
        return {name: find_tasks(PREFIX + name, self.seed, "heldout").distinct(self.samples) for name in self.sets}

    def seed_of(self, key: SampleKey) -> int:
        """Of a task's answers, the same whatever else is asked."""
        return int(content_hash(f"{self.seed} {key[0]} {key[2]}"), 16) >> 33

    def order(self) -> Iterator[SampleKey]:
        """All samples, the sources by turns, so that what is there of an evaluation that was cut short covers all."""
        for index in range(self.samples):
            for name in self.sets:
                yield name, None, index

    def settings(self, model: str, identity: str, **more: Any) -> dict[str, Any]:
        """What decides the numbers."""
        return {
            "evaluation": "tasks",
            "version": VERSION,
            "model": model,
            "identity": identity,
            "seed": self.seed,
            "thinking": self.thinking,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            **more,
            "sets": dict.fromkeys(self.sets, True),
            "samples": self.samples,
        }


def parse_thinking(text: str) -> str:
    """on, off, or a number of tokens.

    Raises:
        UserError: something else.
    """
    wanted = text.strip().lower()
    if wanted in (ON, OFF):
        return wanted
    if not wanted.isdecimal() or not int(wanted):
        raise UserError(f"--thinking {text}: write on, off, or a budget in tokens, such as 64")
    return str(int(wanted))


def parse_sets(sources: Sequence[str]) -> tuple[str, ...]:
    """Sources of tasks without their prefix, each once; none: the default ones.

    Raises:
        UserError: no tasks of that name, or an option out of form.
    """
    names = tuple(dict.fromkeys(source.removeprefix(PREFIX) for source in sources)) or DEFAULT
    for name in names:
        find_tasks(PREFIX + name)
    return names
