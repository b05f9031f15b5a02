"""A step source's own state in a checkpoint: JSON values in state.json, tensors beside the weights."""

from __future__ import annotations

import json
from typing import Any

from torch import Tensor

from nano3.config.errors import UserError
from nano3.train.checkpoint import CheckpointError, Saved, stored_tensors
from nano3.train.feed import StepSource
from nano3.train.world import World

SOURCE = "source."
"""Prefix of a source's tensors in a checkpoint, one set for each rank that reads other data."""


def source_tensors(state: dict[str, Any], world: World) -> dict[str, Tensor]:
    """The tensors of a source's state by their names in a checkpoint."""
    return {f"{_prefix(world)}{key}": value for key, value in state.items() if isinstance(value, Tensor)}


def source_values(state: dict[str, Any], world: World) -> list[dict[str, Any]]:
    """JSON values and names of tensors of each data rank's source; one entry for all where they are equal.

    Raises:
        UserError: a value is neither a tensor nor JSON.
    """
    values = {key: _as_json(key, value) for key, value in state.items() if not isinstance(value, Tensor)}
    mine = {"values": values, "tensors": [key for key, value in state.items() if isinstance(value, Tensor)]}
    by_rank = dict(world.gather((world.data.rank, mine)))
    entries = [by_rank[rank] for rank in sorted(by_rank)]
    same = all(entry == entries[0] and not entry["tensors"] for entry in entries)
    return entries[:1] if same else entries


def stored_source(saved: Saved, world: World) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """This rank's source state in a checkpoint: JSON values, and empty tensors to be filled from it by name.

    Raises:
        CheckpointError: the checkpoint is of another number of ranks, each with a state of its own.
    """
    entries = saved.state.get("source", [{"values": {}, "tensors": []}])
    if len(entries) == 1 and not entries[0]["tensors"]:
        return entries[0]["values"], {}
    if len(entries) != world.data.size:
        raise CheckpointError(
            f"{saved.path} holds the training data's state of {len(entries)} ranks, and this run has "
            f"{world.data.size}: resume it with {len(entries)}"
        )
    return entries[world.data.rank]["values"], stored_tensors(saved.path, _prefix(world), world)


def restore_source(source: StepSource, values: dict[str, Any], tensors: dict[str, Tensor], world: World) -> None:
    """Hand a source its state back."""
    source.restore({**values, **{name.removeprefix(_prefix(world)): value for name, value in tensors.items()}})


def _prefix(world: World) -> str:
    return f"{SOURCE}{world.data.rank}."


def _as_json(key: str, value: Any) -> Any:
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise UserError(f"the training data's state {key!r} is neither a tensor nor JSON: {error}") from error
