"""Data parallelism applied from outside: FSDP2 shards or full copies; the model knows no ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from nano3.config.schema import ParallelConfig
from nano3.train.world import World


def parallelize(model: Any, world: World, cfg: ParallelConfig) -> None:
    """Prepare `model` (with `.blocks` and `.hidden`) for training on all ranks, in place.

    With `cfg.fsdp`, each block and the root hold float32 shards, gathered and reduced in float32, so that router,
    norms and A_log come out as on one rank. Otherwise every rank keeps a copy and `sync_gradients` adds them up.
    Gradients are summed, not averaged: the loss is already normalised over the global batch. Both concern the ranks of
    `world.loss` alone.
    """
    if world.loss.size == 1:
        return
    if not cfg.fsdp:
        _same_start(model, world)
        return
    mesh = world.loss_mesh()
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    # The output projection is used after `hidden` returns, so the root's weights stay gathered until the backward.
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(model, "hidden")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


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
