"""Rows of tasks, given ones or such as environments make themselves: training and held-out ones apart."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import get_args

from nano3.config.errors import UserError
from nano3.data.tasks.source import DRAWS_PER_TASK, HELDOUT_FRACTION, Split
from nano3.data.tasks.task import content_hash
from nano3.rl.environments.rows import GYM, Row, find_column, read_rows


def given_or_made(
    rows: str | Path | Iterable[Row] | None,
    make: Callable[[random.Random], Iterator[Row]],
    n: int,
    seed: int,
    split: Split | None,
    name: str,
    about: Callable[[Row], object] = lambda row: row,
) -> list[Row]:
    """Rows of a jsonl file or as given; where there are none, made ones.

    Args:
        rows: a jsonl file or its rows, or None.
        make, n, seed, name, about: as `made_rows`.
        split: of made rows: train (also None) or heldout. Of given ones: the tenth whose prompts have a low hash is
            held out, the others are for training; None: all.

    Raises:
        UserError: as `made_rows`, a line is no JSON object, or no row is in the split.
    """
    if rows is None:
        return made_rows(make, n, seed, split or "train", name, about)
    found = read_rows(rows)
    if split is None:
        return found
    part = [row for row in found if is_in(split, _prompt(row), name)]
    if found and not part:
        raise UserError(f"environment {name}: none of the {len(found)} rows is in the split {split}; give more rows")
    return part


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
    found: dict[str, Row] = {}
    for _, row in zip(range(most_draws(n)), make(random.Random(f"{name} {seed} {split}")), strict=False):
        if len(found) >= n:
            break
        if is_in(split, about(row), name):
            content = _hash(row)
            found.setdefault(content, {"id": f"made-{content}", **row})
    if len(found) < n:
        raise UserError(
            f"environment {name}: only {len(found)} different {split} tasks are made here: ask for fewer than {n}"
        )
    return list(found.values())


def most_draws(n: int) -> int:
    """How many tasks are made for `n` of a split that differ, before there count as too few."""
    return max(1000, int(n * DRAWS_PER_TASK / HELDOUT_FRACTION))


def is_in(split: Split, about: object, name: str) -> bool:
    """Whether what a task of environment `name` is about, JSON values, belongs to a split: by its hash alone.

    Raises:
        UserError: no such split.
    """
    if split not in get_args(Split):
        raise UserError(f"environment {name}: split is {split!r}; it must be one of {', '.join(get_args(Split))}")
    held_out = int(_hash(about), 16) / 2**64 < HELDOUT_FRACTION
    return held_out == (split == "heldout")


def _prompt(row: Row) -> object:
    """What the model is asked; all of the row where that is in none of the usual columns."""
    found = find_column(row, GYM, "prompt", "messages", "question", "user_turns", "situation")
    return row if found is None else found


def _hash(value: object) -> str:
    return content_hash(json.dumps(value, sort_keys=True, default=str))
