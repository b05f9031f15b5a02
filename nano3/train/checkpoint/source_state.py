"""A step source's own state in a checkpoint: JSON values in state.json, tensors beside the weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from torch import Tensor

from nano3.config.errors import UserError
from nano3.train.checkpoint.checkpointer import CheckpointError, Saved, stored_tensors
from nano3.train.feed import StepSource
from nano3.train.world import World, attempt

SOURCE = "source."
"""Prefix of a source's tensors in a checkpoint, one set for each rank that reads other data."""
SHARED = "source_shared"
"""Key in state.json: whether the state of the first rank's source is that of all."""


class SourceState:
    """What a checkpoint keeps of the sources of all ranks; every rank must make one.

    Args:
        source: this rank's.
        world: the ranks.
        before: something else that is done first and may fail.

    Raises:
        UserError: a value is neither a tensor nor JSON, or any other error of `before` or a source; on every rank.
    """

    def __init__(self, source: StepSource, world: World, before: Callable[[], None] = lambda: None) -> None:
        state: dict[str, Any] = {}
        values: dict[str, Any] = {}

        def ask() -> None:
            before()
            state.update(source.state())
            values.update({key: _as_json(key, value) for key, value in state.items() if not isinstance(value, Tensor)})

        world.agree(attempt(ask))
        found = {key: value for key, value in state.items() if isinstance(value, Tensor)}
        by_rank = dict(world.gather((world.data.rank, {"values": values, "tensors": list(found)})))
        entries = [by_rank[rank] for rank in sorted(by_rank)]
        shared = _is_shared(source, entries)
        self.values = {"source": entries[:1] if shared else entries, SHARED: shared}
        """For state.json: values and names of tensors of each data rank's source, and whether one entry is for all."""
        self.tensors = {f"{_prefix(world, shared)}{key}": value for key, value in found.items()}
        """By their names in a checkpoint."""
        self.safe_step: int | None = getattr(source, "safe_step", None)
        """See nano3.train.feed.StepSource.state."""


def _is_shared(source: StepSource, entries: list[dict[str, Any]]) -> bool:
    """Whether any number of ranks may go on from the first entry. One rank alone tells nothing of that."""
    if getattr(source, "shared_state", False) or not any(e["values"] or e["tensors"] for e in entries):
        return True
    return len(entries) > 1 and all(e == entries[0] and not e["tensors"] for e in entries)


def stored_source(saved: Saved, world: World) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """This rank's source state in a checkpoint: JSON values, and empty tensors to be filled from it by name as there.

    Raises:
        CheckpointError: the checkpoint is of another number of ranks, each with a state of its own.
    """
    entries = saved.state.get("source", [{"values": {}, "tensors": []}])
    shared = saved.state.get(SHARED, _was_shared(entries, saved.state.get("world_size", 1)))
    if not shared and len(entries) != world.data.size:
        own = f"{len(entries)} rank{'s' * (len(entries) > 1)}"
        raise CheckpointError(
            f"{saved.path} holds the training data's state of {own}, and this run has {world.data.size}: resume it "
            f"with {len(entries)}"
        )
    entry = entries[0 if shared else world.data.rank]
    tensors = stored_tensors(saved.path, _prefix(world, shared), world) if entry["tensors"] else {}
    return entry["values"], tensors


def _was_shared(entries: list[dict[str, Any]], n_ranks: int) -> bool:
    """What a checkpoint means that does not say it."""
    return len(entries) == 1 and not entries[0]["tensors"] and (n_ranks > 1 or not entries[0]["values"])


def restore_source(source: StepSource, values: dict[str, Any], tensors: dict[str, Tensor], world: World) -> None:
    """Hand a source its state back, on every rank; an error of one is raised on all."""
    own = {name.removeprefix(SOURCE).partition(".")[2]: value for name, value in tensors.items()}
    world.agree(attempt(lambda: source.restore({**values, **own})))


def _prefix(world: World, shared: bool) -> str:
    return f"{SOURCE}{0 if shared else world.data.rank}."


def _as_json(key: str, value: Any) -> Any:
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise UserError(f"the training data's state {key!r} is neither a tensor nor JSON: {error}") from error
