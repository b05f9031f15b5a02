"""A lock on a folder for one writer at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nano3.locks import wait_for_lock


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for one writing process; others wait. The system frees the lock of a killed process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w", encoding="utf-8") as file:
        with suppress(OSError):  # a file system without locks: writes are atomic all the same
            wait_for_lock(file.fileno())
        yield
