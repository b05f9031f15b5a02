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
from nano3.parallel.pipeline import Pipeline, keep_stages
from nano3.parallel.plan import Sharding, shard, sharded_modules
from nano3.parallel.precision import Precision, precision_of
from nano3.parallel.stages import stages_for
from nano3.parallel.tensor import divide_heads
from nano3.train.freeze import freeze
from nano3.train.settings import TrainerConfig
from nano3.train.world import World


def place(model: Any, cfg: TrainerConfig, world: World) -> tuple[Any, Pipeline | None]:
    """`model` as it trains: on this rank's device, its settings those of `cfg`, its train.freeze frozen, parallelised;
    and what runs its passes where ranks hold different blocks.

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
    pipeline = parallelize(model, world, cfg.parallel, max(getattr(cfg, "lengths", (0,))))
    if empty:
        # Not before: so no rank ever holds more than its shards.
        _make_room(model, world, cfg.parallel)
    return model, pipeline


def parallelize(model: Any, world: World, cfg: ParallelConfig, seq_len: int = 0) -> Pipeline | None:
    """Prepare `model` (with `.blocks` and `.hidden`) for training on all ranks, in place.

    With `cfg.fsdp`, each block and the root hold float32 shards (nano3.parallel.plan), so that router, norms and A_log
    come out as on one rank. Otherwise every rank keeps a copy and `sync_gradients` adds them up. Gradients are summed,
    not averaged: the loss is already normalised over the global batch. Both concern the ranks of `world.loss` alone.

    With `cfg.pipeline` above 1 the model keeps the blocks of this rank's stages, cut by what they cost on rows of
    `seq_len` tokens; what is returned runs the passes.

    Raises:
        UserError: the ranks of `world` cannot be arranged as `cfg` says, or a rank would have nothing to train.
        ValueError: `world` was opened for other numbers of ranks to a sequence or a pipeline.
    """
    layout = layout_of(cfg, model.cfg, world.loss.size * world.pipeline.size)
    for name, own in (
        ("context", world.context.size),
        ("tensor", world.tensor.size),
        ("pipeline", world.pipeline.size),
    ):
        if getattr(layout, name) != own:
            raise ValueError(f"parallel.{name} is {getattr(layout, name)}, and the world was opened with {own}")
    precision, pipeline = check_device(cfg, model.compute_dtype, world), None
    if layout.pipeline > 1:
        stages = stages_for(cfg, model.cfg, seq_len)
        own = stages[world.pipeline.rank :: world.pipeline.size]
        keep_stages(model, own)
        world.agree(None if any(p.requires_grad for p in model.parameters()) else _nothing_to_train(own))
        pipeline = Pipeline(model, stages, world.pipeline.handle, world.device)
    if layout.tensor > 1:
        divide_heads(model, world.tensor.handle)
    if world.loss.size > 1 and cfg.fsdp:
        options = Sharding(precision, cfg.reshard_after_forward is not False, cfg.offload)
        shard(model, layout, world.loss_mesh(), options)
    elif world.loss.size > 1:
        _same_start(model, world)
    return pipeline


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
    if cfg.offload and world.loss.size == 1:
        raise UserError(
            "parallel.offload keeps the shards of several processes in main memory, and one process holds all of them: "
            "--set parallel.offload=false, or start more with torchrun"
        )
    return precision_of(cfg, compute, world.device)


def _nothing_to_train(stages: list[range]) -> UserError:
    blocks = " and ".join(f"{stage.start} to {stage.stop - 1}" for stage in stages)
    return UserError(
        f"parallel.pipeline: all weights of the blocks {blocks}, which one process holds, are frozen; lower it, or "
        "cut the model elsewhere (parallel.cuts)"
    )


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
