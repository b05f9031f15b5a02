"""Tasks that environments make themselves: all different, training and held-out ones apart."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import get_args

from nano3.config.errors import UserError
from nano3.data.tasks.source import DRAWS_PER_TASK, HELDOUT_FRACTION, Split
from nano3.data.tasks.task import content_hash
from nano3.rl.environments.rows import Row


def made_rows(
    make: Callable[[random.Random], Iterator[Row]],
    n: int,
    seed: int,
    split: Split,
    name: str,
    about: Callable[[Row], object] = lambda row: row,
) -> list[Row]:
    """`n` different rows of one split, each with an id that follows from its content.

    Args:
        make: rows without end, by a random generator.
        n, seed: how many, and which.
        split: train or heldout: what one is about, the other never is, whatever the seeds.
        name: of the environment.
        about: the part of a row that decides its split.

    Raises:
        UserError: no such split, or there are not so many different rows.
    """
    if split not in get_args(Split):
        raise UserError(f"environment {name}: split is {split!r}; it must be one of {', '.join(get_args(Split))}")
    draws = max(1000, int(n * DRAWS_PER_TASK / HELDOUT_FRACTION))
    found: dict[str, Row] = {}
    for _, row in zip(range(draws), make(random.Random(f"{name} {seed} {split}")), strict=False):
        if len(found) >= n:
            break
        held_out = int(_hash(about(row)), 16) / 2**64 < HELDOUT_FRACTION
        if held_out == (split == "heldout"):
            content = _hash(row)
            found.setdefault(content, {"id": f"made-{content}", **row})
    if len(found) < n:
        raise UserError(
            f"environment {name}: only {len(found)} different {split} tasks are made here: ask for fewer than {n}"
        )
    return list(found.values())


def _hash(value: object) -> str:
    return content_hash(json.dumps(value, sort_keys=True))
