"""Bounds of settings, checked where a dataclass is built."""

from __future__ import annotations

import operator
from typing import Any

_BOUNDS = {
    ">=": ("at least", operator.ge),
    "<=": ("at most", operator.le),
    ">": ("above", operator.gt),
    "<": ("below", operator.lt),
}


def check(section: str, settings: Any, relation: str, bound: float, *names: str) -> None:
    """Raise ValueError, naming key, value and bound, unless every named field has this relation to `bound`."""
    words, holds = _BOUNDS[relation]
    for name in names:
        value = getattr(settings, name)
        if not holds(value, bound):
            raise ValueError(f"{section}.{name} is {value}; it must be {words} {bound}")


def as_typed(value: Any) -> str:
    """A value as it is typed after `--set key=`."""
    return str(value).lower() if isinstance(value, bool) else str(value)
