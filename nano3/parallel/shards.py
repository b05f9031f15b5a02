"""What one process of a layout holds of a model, counted without starting any."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch

from nano3.config.model import ModelConfig
from nano3.model.hf.names import is_stacked
from nano3.model.lm import LM
from nano3.parallel.layout import Layout

STATE_BYTES = 16
"""Of a parameter that trains: float32 weight, gradient and two moments of AdamW."""


@dataclass(frozen=True)
class Share:
    """One process's part of a model."""

    parameters: int
    """Numbers that it holds of all parameters."""
    expert_parameters: int
    """Those of them that belong to routed experts."""

    @property
    def state_bytes(self) -> int:
        """Bytes of its weights, gradients and moments in float32."""
        return STATE_BYTES * self.parameters


def share_of(
    model: ModelConfig, layout: Layout, rank: int, sharded: bool = True, blocks: Collection[int] | None = None
) -> Share:
    """What process `rank` holds; `sharded`: not all of it (parallel.fsdp); `blocks`: numbers of those of its stages in
    a pipeline, None: all."""
    total = of_experts = 0
    for name, shape in parameter_shapes(model):
        if not _in_stage(name, model, blocks):
            continue
        size = math.prod(local_shape(name, shape, layout, rank) if sharded else shape)
        total += size
        of_experts += size if is_stacked(name) else 0
    return Share(total, of_experts)


def _in_stage(name: str, model: ModelConfig, blocks: Collection[int] | None) -> bool:
    """Whether a parameter belongs to one of `blocks`, or to the end of the model that comes with one."""
    if blocks is None:
        return True
    kind, _, rest = name.partition(".")
    if kind == "blocks":
        return int(rest.partition(".")[0]) in blocks
    return (0 if kind == "embeddings" else model.n_blocks - 1) in blocks


def replica_parameters(model: ModelConfig, layout: Layout) -> int:
    """Parameters that all processes of a replica, over all stages, hold together: those of the model."""
    shapes, ranks = list(parameter_shapes(model)), range(layout.replica)
    return sum(math.prod(local_shape(name, shape, layout, rank)) for name, shape in shapes for rank in ranks)


def parameter_shapes(model: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every parameter of a model."""
    with torch.device("meta"):
        for name, parameter in LM(model).named_parameters():
            yield name, tuple(parameter.shape)


def local_shape(name: str, shape: tuple[int, ...], layout: Layout, rank: int) -> tuple[int, ...]:
    """Shape of the part of a parameter that process `rank` holds, as nano3.parallel.plan.shard makes it."""
    place = rank % layout.replica
    if layout.expert == 1 or not is_stacked(name):
        return (_chunk(shape[0], layout.replica, place), *shape[1:])
    shards = layout.replica // layout.expert
    local = [shape[0] // layout.expert, *shape[1:]]
    axis = shard_axis(shape, shards)
    local[axis] //= shards
    return tuple(local)


def shard_axis(shape: tuple[int, ...], shards: int) -> int:
    """The axis along which experts that are divided already are sharded: not along the experts, which would make
    gathering take two steps."""
    return next(axis for axis in (1, 2) if shape[axis] % shards == 0)


def _chunk(n: int, parts: int, place: int) -> int:
    """Size of part `place` of n in chunks of one size; the last ones are smaller, or empty."""
    size = -(-n // parts)
    return max(0, min(size, n - place * size))
