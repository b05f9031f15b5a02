"""Parallelism applied from outside: shards, divided experts, or full copies; the model knows no ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

from nano3.config.schema import ParallelConfig
from nano3.parallel.layout import layout_of
from nano3.parallel.plan import shard
from nano3.train.world import World


def parallelize(model: Any, world: World, cfg: ParallelConfig) -> None:
    """Prepare `model` (with `.blocks` and `.hidden`) for training on all ranks, in place.

    With `cfg.fsdp`, each block and the root hold float32 shards (nano3.parallel.plan), so that router, norms and A_log
    come out as on one rank. Otherwise every rank keeps a copy and `sync_gradients` adds them up. Gradients are summed,
    not averaged: the loss is already normalised over the global batch. Both concern the ranks of `world.loss` alone.

    Raises:
        UserError: the ranks of `world` cannot be arranged as `cfg` says.
        ValueError: `world` was opened for another number of ranks to a sequence.
    """
    layout = layout_of(cfg, model.cfg, world.loss.size)
    if layout.context != world.context.size:
        ranks = world.context.size
        raise ValueError(f"parallel.context is {layout.context}, and the world has {ranks} ranks a sequence")
    if world.loss.size == 1:
        return
    if cfg.fsdp:
        shard(model, layout, world.loss_mesh())
    else:
        _same_start(model, world)


def sync_gradients(model: nn.Module, world: World) -> None:
    """Sum gradients over the ranks where every rank keeps a full copy; shards are summed by FSDP already."""
    if world.loss.size == 1 or isinstance(model, FSDPModule):
        return
    for parameter in model.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            world.loss.sum(parameter.grad)


def release(model: nn.Module) -> None:
    """Drop gathered weights after forward passes that no backward pass followed."""
    if isinstance(model, FSDPModule):
        model.reshard()


def _same_start(model: nn.Module, world: World) -> None:
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if not tensor.is_meta:
                dist.broadcast(tensor, group=world.loss.handle, group_src=0)
