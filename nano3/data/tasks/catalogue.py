"""Generators of tasks by name, as `generate:NAME` or `generate:NAME?levels=3-7&trace=mixed`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

from nano3.config.errors import UserError
from nano3.config.generate import PREFIX
from nano3.config.typed import nearest
from nano3.data.tasks.instructions import INSTRUCTIONS
from nano3.data.tasks.json_objects import JSON
from nano3.data.tasks.letters import COUNT, SPELL
from nano3.data.tasks.numbers import ADD, SORT
from nano3.data.tasks.shop import TOOL
from nano3.data.tasks.source import Split, TaskSource, options
from nano3.data.tasks.talk import TALK
from nano3.data.tasks.task import Generator

GENERATORS: dict[str, Generator] = {
    each.name: each for each in (COUNT, SPELL, SORT, ADD, JSON, TOOL, INSTRUCTIONS, TALK)
}
GYM = "gym/"
"""Before the name of a reasoning-gym data set."""


def find_generator(name: str) -> Generator:
    """The generator of this name.

    Raises:
        UserError: there is none, or it needs a package that is not installed.
    """
    if name.startswith(GYM):
        from nano3.data.tasks.gym import gym_generator

        return gym_generator(name.removeprefix(GYM))
    if name not in GENERATORS:
        close = nearest(name, GENERATORS)
        hint = f"did you mean {PREFIX}{close}?" if close else f"there are {', '.join(GENERATORS)} and {GYM}NAME"
        raise UserError(f"no tasks can be made for {PREFIX + name!r}; {hint}")
    return GENERATORS[name]


def find_tasks(spec: str, seed: int = 0, split: Split = "train") -> TaskSource:
    """The tasks that a source names.

    Args:
        spec: `generate:NAME` or NAME alone; behind a `?` options: levels (3-7 or 3,5) and trace (short, long, mixed).
        seed: other seeds give other tasks.
        split: train or heldout; the two share no task.

    Raises:
        UserError: no such generator, level or option.
    """
    name, _, query = spec.removeprefix(PREFIX).partition("?")
    return TaskSource(find_generator(name), seed, split, **options(dict(parse_qsl(query)), spec))


def is_tasks(spec: str) -> bool:
    """Whether a source names a generator of tasks, that of `find_tasks`."""
    name = spec.removeprefix(PREFIX).partition("?")[0]
    return spec.startswith(PREFIX) and (name in GENERATORS or name.startswith(GYM))


def check(generator: str, truth: Any, replies: Sequence[Mapping[str, Any]]) -> float:
    """Reward, from 0 to 1 (solved), of the messages that follow a task's prompt; pure, so that saved ones can be
    checked again.

    Args:
        generator: name of the task's generator.
        truth: the task's truth.
        replies: all messages after the prompt in OpenAI's form; an assistant's content without its reasoning.
    """
    return find_generator(generator).check(truth, replies)
