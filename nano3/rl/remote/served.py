"""The folder through which servers get a trainer's weights; a file in it tells it from a user's own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.model.hf.folder import save
from nano3.model.hf.write import FOR_SERVERS
from nano3.train.world import World, attempt


def check_served(folder: Path) -> None:
    """Raise UserError where weights for servers would take the place of anything but such weights."""
    if not folder.exists() or (folder / FOR_SERVERS).is_file():
        return
    if not folder.is_dir() or any(folder.iterdir()):
        raise UserError(
            f"{folder}: weights for the servers go there at each update, and it holds something else; remove it, or "
            "name a new folder with rollout.server_weights"
        )


def write_served(model: Any, folder: Path, world: World) -> None:
    """Write the weights in the type that is computed with; every rank must call.

    Raises:
        UserError: the folder is something else, or cannot be written.
    """
    world.agree(attempt(lambda: check_served(folder)) if world.is_main else None)
    save(model, folder, dtype=model.compute_dtype, extra=lambda new: (new / FOR_SERVERS).touch())


def remove_served(folder: Path, world: World) -> None:
    """Remove weights that `write_served` wrote, and nothing else."""
    if world.is_main and (folder / FOR_SERVERS).is_file():
        shutil.rmtree(folder, ignore_errors=True)
