"""FSDP2 over a layout's processes: dense weights over a replica, experts over the processes that hold the same ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.fsdp._fully_shard._fsdp_common import FSDPMeshInfo, HSDPMeshInfo
from torch.distributed.tensor import Shard

from nano3.config.errors import UserError
from nano3.parallel.experts import divide_experts
from nano3.parallel.layout import EXPERT_AXES, PIPELINE, Layout
from nano3.parallel.precision import FLOAT32, Precision, narrow_parameters
from nano3.parallel.shards import shard_axis


@dataclass(frozen=True)
class Sharding:
    """How shards are kept and travel; see nano3.config.sections.parallel."""

    precision: Precision = FLOAT32
    """Types on the way."""
    free: bool = True
    """Free a block's gathered weights after its forward pass."""
    offload: bool = False
    """Keep shards in main memory."""


def shard(model: Any, layout: Layout, processes: DeviceMesh, options: Sharding | None = None) -> None:
    """Shard `model` (with `.blocks` and `.hidden`), in place.

    Gradients are summed over all processes, never averaged: the loss is normalised over the global batch. Those of
    experts arrive summed over the processes of an exchange, and are summed over the others that hold the same experts.

    Args:
        model: its parameters may be on the meta device.
        layout: of these processes.
        processes: all of them as a mesh of one axis.
        options: how; None: all in float32.
    """
    options = options or Sharding()
    dense, kept = processes, options.precision
    if layout.replicate > 1:
        shape = (layout.replicate, layout.replica)
        dense = _mesh(layout, processes.device_type, shape, EXPERT_AXES[:2])
    apart = _apart(layout, dense) if kept.is_mixed else None
    policy: dict[str, Any] = {
        "mesh": dense,
        "shard_placement_fn": _placement(model, layout, dense, apart) if layout.expert > 1 or apart else None,
        "mp_policy": _policy(kept),
        "offload_policy": CPUOffloadPolicy() if options.offload else OffloadPolicy(),
    }
    for block in model.blocks:
        fully_shard(block, reshard_after_forward=options.free, **policy)
    # The output projection is used after `hidden` returns, so the root's weights stay gathered until the backward.
    fully_shard(model, reshard_after_forward=False, **policy)
    register_fsdp_forward_method(model, "hidden")
    for module in sharded_modules(model):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
        for group in module._get_fsdp_state()._fsdp_param_groups:
            if group.mesh_info is apart:
                group.mp_policy = _policy(FLOAT32)


def sharded_modules(model: nn.Module) -> list[FSDPModule]:
    """The modules whose weights are gathered together."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _policy(kept: Precision) -> MixedPrecisionPolicy:
    """As FSDP writes it; activations are the model's own business."""
    gather = None if kept.gather == torch.float32 else kept.gather
    return MixedPrecisionPolicy(gather, kept.reduce, cast_forward_inputs=False)


def _placement(
    model: nn.Module, layout: Layout, dense: DeviceMesh, apart: FSDPMeshInfo | None
) -> Callable[[nn.Parameter], Any]:
    """What tells FSDP over which processes, and how, each parameter is sharded; divides the experts.

    FSDP gathers at once, and in one type, what is sharded over one process group. So the weights that are float32
    where others are not have a group of their own, of the same processes: `apart`.
    """
    try:
        from torch.distributed.fsdp._fully_shard._fsdp_common import ShardPlacementResult
    except ImportError as error:
        setting = "expert" if layout.expert > 1 else "gather_dtype and parallel.reduce_dtype"
        raise UserError(f"parallel.{setting} needs PyTorch 2.13 or newer: FSDP over two sets of processes") from error
    replicas = layout.replicate > 1
    of_others, divided = _info(dense, replicas), set()
    of_experts, shards = of_others, layout.expert_shape[1]
    if layout.expert > 1:
        mesh = _mesh(layout, dense.device_type, layout.expert_shape, EXPERT_AXES)
        divided = divide_experts(model, mesh[EXPERT_AXES[2]])
        of_experts = _info(mesh[EXPERT_AXES[:2]] if replicas else mesh[EXPERT_AXES[1]], replicas)
    narrow = narrow_parameters(model)

    def place(parameter: nn.Parameter) -> Any:
        if parameter in divided:
            return ShardPlacementResult(Shard(shard_axis(tuple(parameter.shape), shards)), of_experts)
        return ShardPlacementResult(Shard(0), of_others if apart is None or parameter in narrow else apart)

    return place


def _apart(layout: Layout, dense: DeviceMesh) -> FSDPMeshInfo:
    """The processes of `dense` once more; those that hold the weights once are a process group of their own."""
    replicas = torch.arange(dist.get_world_size()).view(-1, layout.replica)
    own: Any = dist.new_subgroups_by_enumeration(replicas.tolist())[0]
    if layout.replicate == 1:
        return _info(DeviceMesh.from_group(own, dense.device_type, mesh_dim_names=("apart",)), False)
    groups, names = [dense.get_group(0), own], (EXPERT_AXES[0], "apart")
    return _info(DeviceMesh.from_group(groups, dense.device_type, dense.mesh, mesh_dim_names=names), True)


def _mesh(layout: Layout, device_type: str, shape: tuple[int, ...], names: tuple[str, ...]) -> DeviceMesh:
    """The processes of this one's stage."""
    if layout.pipeline == 1:
        return init_device_mesh(device_type, shape, mesh_dim_names=names)
    return init_device_mesh(device_type, (layout.pipeline, *shape), mesh_dim_names=(PIPELINE, *names))[names]


def _info(mesh: DeviceMesh, replicas: bool) -> FSDPMeshInfo:
    if replicas:
        return HSDPMeshInfo(mesh=mesh, shard_mesh_dim=1, replicate_mesh_dim=0)
    return FSDPMeshInfo(mesh=mesh, shard_mesh_dim=0)
