"""Whether all processes of a run see the same folder."""

from __future__ import annotations

import socket
import time
import uuid
from pathlib import Path

from nano3.config.errors import UserError
from nano3.train.world import World, attempt

SECONDS = 10.0
"""How long a file that one machine wrote may take to be seen on another."""
SHOWN = 4
"""Processes named in an error."""


def check_shared(folder: Path, world: World) -> None:
    """Refuse a run folder that is not the same for all processes; every one must call, and nothing is left behind.

    The first process writes a file into the folder, or where it is going to be made, and all others look for it.

    Raises:
        UserError: some do not see it, or it cannot be written; on every process.
    """
    if world.size == 1:
        return
    levels, name = world.from_main((_levels(folder), f".nano3-{uuid.uuid4().hex}"))
    token = [folder, *folder.resolve().parents][levels] / name
    try:
        world.agree(attempt(token.touch) if world.is_main else None)
        seen = world.gather((_appears(token), socket.gethostname()))
    finally:
        if world.is_main:
            token.unlink(missing_ok=True)
    blind = [f"rank {rank} on {host}" for rank, (found, host) in enumerate(seen) if not found]
    if blind:
        more = f" and {len(blind) - SHOWN} more" if len(blind) > SHOWN else ""
        raise UserError(
            f"--out {folder}: what rank 0 on {seen[0][1]} writes there is not seen by "
            f"{', '.join(blind[:SHOWN])}{more}: give a folder on a file system that all processes share"
        )


def _levels(folder: Path) -> int:
    """How far above `folder` the first folder is that exists."""
    places = [folder, *folder.resolve().parents]
    return next(i for i, place in enumerate(places) if place.is_dir())


def _appears(file: Path) -> bool:
    end = time.monotonic() + SECONDS
    while not file.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
