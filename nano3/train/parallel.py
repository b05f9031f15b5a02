"""Parallelism applied from outside: shards, divided experts, or full copies; the model knows no ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

from nano3.config.errors import UserError
from nano3.config.sections.parallel import ParallelConfig
from nano3.model.dtype import compute_dtype
from nano3.parallel.layout import layout_of
from nano3.parallel.plan import Sharding, shard, sharded_modules
from nano3.parallel.precision import Precision, precision_of
from nano3.train.freeze import freeze
from nano3.train.settings import TrainerConfig
from nano3.train.world import World


def place(model: Any, cfg: TrainerConfig, world: World) -> Any:
    """`model` as it trains: on this rank's device, its settings those of `cfg`, its train.freeze frozen, parallelised.

    Raises:
        UserError, ValueError: as `parallelize`, and `freeze`.
    """
    train = cfg.train
    empty = next(model.parameters()).is_meta
    if not empty:
        model.to(world.device)
    model.compute_dtype = compute_dtype(train.dtype, world.device)
    model.checkpoint_activations = train.checkpoint_activations == "block"
    model.sequence_chunk = train.sequence_chunk
    model.train()
    freeze(model, train.freeze)
    parallelize(model, world, cfg.parallel)
    if empty:
        # Not before: so no rank ever holds more than its shards.
        _make_room(model, world, cfg.parallel)
    return model


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
    precision = check_device(cfg, model.compute_dtype, world)
    if world.loss.size == 1:
        return
    if cfg.fsdp:
        options = Sharding(precision, cfg.reshard_after_forward is not False, cfg.offload)
        shard(model, layout, world.loss_mesh(), options)
    else:
        _same_start(model, world)


def check_device(cfg: ParallelConfig, compute: torch.dtype, world: World) -> Precision:
    """Refuse settings of shards that mean nothing where this run computes; the types in which shards travel.

    Raises:
        UserError: which.
    """
    if cfg.offload and world.device.type == "cpu":
        raise UserError(
            "parallel.offload keeps weights in main memory for GPUs, and this run computes on the CPU, where they are "
            "in any case: --set parallel.offload=false"
        )
    if cfg.offload and world.size == 1:
        raise UserError(
            "parallel.offload keeps the shards of several processes in main memory, and this is one process: "
            "--set parallel.offload=false, or start more with torchrun"
        )
    return precision_of(cfg, compute, world.device)


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
    for module in sharded_modules(model):
        module.reshard()


def _same_start(model: nn.Module, world: World) -> None:
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if not tensor.is_meta:
                dist.broadcast(tensor, group=world.loss.handle, group_src=0)


def _make_room(model: nn.Module, world: World, cfg: ParallelConfig) -> None:
    """Give the parameters of a parallelised model that has none memory of their own: shards that are offloaded main
    memory."""
    model.to_empty(device="cpu" if cfg.offload and isinstance(model, FSDPModule) else world.device)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(world.device)
