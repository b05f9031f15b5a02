"""What a pipeline reads: inputs, divided into parts of about the same size, one a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PART_BYTES = 64 << 20
"""Bytes of a task's part, if its files allow it: a killed task begins anew."""
FEWEST_TASKS = 4
"""Tasks of a small corpus, if it has so many files: two cores then end together."""


@dataclass(frozen=True)
class Unit:
    """An input that one task reads whole: a file, or a slice of the embedded corpus."""

    path: str
    """Where it is; a name for what is no file."""
    name: str
    """What documents of it are called."""
    size: int
    """Bytes, as they lie on disk."""
    identity: str
    """Text that changes when the content does."""
    field: str = "text"
    """Where the text is in a record."""
    found: bool = False
    """It was found in a folder: one that cannot be read is left out and counted, not an error."""
    root: str = ""
    """The folder that the user named, if it was found in one."""
    part: tuple[int, int] = (0, 1)
    """Which slice of how many."""


def file_unit(path: Path, name: str = "", field: str = "text", found: bool = False, root: str = "") -> Unit:
    """The unit of a file."""
    status = path.stat()
    identity = f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0{field}"
    return Unit(str(path), name or path.name, status.st_size, identity, field, found, root)


def default_tasks(units: Sequence[Unit]) -> int:
    """How many parts to divide inputs into; it does not depend on the machine."""
    wanted = max(FEWEST_TASKS, -(-sum(unit.size for unit in units) // PART_BYTES))
    return max(1, min(len(units), wanted))


def divide(units: Sequence[Unit], tasks: int) -> tuple[tuple[Unit, ...], ...]:
    """The units in `tasks` runs of neighbours of about the same number of bytes; some are empty where units are few."""
    parts: list[list[Unit]] = [[] for _ in range(tasks)]
    total, before = sum(unit.size for unit in units) or 1, 0
    for unit in units:
        middle = before + unit.size / 2
        parts[min(tasks - 1, int(middle / total * tasks))].append(unit)
        before += unit.size
    return tuple(map(tuple, parts))
