"""Where prepared data lives, and a lock for one writer at a time."""

from __future__ import annotations

import os
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


def cache_root(cache_dir: str = "") -> Path:
    """Folder of prepared data: `cache_dir`, else $XDG_CACHE_HOME/nano3, else ~/.cache/nano3."""
    if cache_dir:
        return Path(cache_dir).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "nano3"
