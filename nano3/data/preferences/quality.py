"""How good an answer to one of nano3's own tasks is, by rule: its task's check knows what is right.

| quality | what it is | score |
|---|---|---|
| concise | right, and nothing beside it | 5 |
| verbose | its last line is right; working or talk stands above it | 4 |
| wrong | its last line has the form of an answer, and is not right | 2 |
| malformed | none of these: empty, cut, another form, no answer at all | 1 |

The ranking of two follows from the difference of their scores (RANKINGS); equal ones are a tie.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Literal, get_args

from nano3.config.errors import UserError
from nano3.config.generate import PREFIX
from nano3.data.preferences.pair import MIDDLE
from nano3.data.tasks.catalogue import check

Quality = Literal["concise", "verbose", "wrong", "malformed"]
QUALITIES: tuple[Quality, ...] = get_args(Quality)
SCORES: dict[Quality, int] = {"concise": 5, "verbose": 4, "wrong": 2, "malformed": 1}
RANKINGS = {4: 1, 3: 1, 2: 2, 1: 3, 0: MIDDLE, -1: 4, -2: 5, -3: 6, -4: 6}
"""By the first score minus the second."""


def judged_generator(name: str) -> str:
    """The name of a generator, with or without `generate:`, whose answers can be judged.

    Raises:
        UserError: they cannot.
    """
    bare = name.removeprefix(PREFIX)
    if bare not in _FORMS:
        raise UserError(
            f"answers to {name} cannot be judged by rule: those to {', '.join(PREFIX + each for each in _FORMS)} can"
        )
    return bare


def quality_of(generator: str, truth: Any, answer: str) -> Quality:
    """The quality of an answer without its reasoning.

    Args:
        generator: name of the task's generator, one of `judged_generator`.
        truth: the task's truth.
        answer: what the model says after its reasoning.
    """
    text = answer.strip()
    if _is_right(generator, truth, text):
        return "concise"
    last = text.rpartition("\n")[2].strip()
    if _is_right(generator, truth, last):
        return "verbose"
    return "wrong" if _FORMS[generator](last) else "malformed"


def _is_right(generator: str, truth: Any, text: str) -> bool:
    return bool(text) and check(generator, truth, [{"role": "assistant", "content": text}]) >= 1


def _matches(pattern: str) -> Callable[[str], bool]:
    return lambda text: re.fullmatch(pattern, text, re.ASCII) is not None


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


_FORMS: dict[str, Callable[[str], bool]] = {
    "count": _matches(r"\d+"),
    "spell": _matches(r"[a-z]+( [a-z]+)*"),
    "sort": _matches(r"\d+( \d+)*"),
    "add": _matches(r"\d+"),
    "json": _is_json_object,
    "instructions": _matches(r"[A-Za-z]+(,? [A-Za-z]+)*"),
}
"""Whether a line has the form that answers to a generator's tasks have."""
