"""FSDP2 over a layout's processes: dense weights over a replica, experts over the processes that hold the same ones."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.fsdp._fully_shard._fsdp_common import FSDPMeshInfo, HSDPMeshInfo
from torch.distributed.tensor import Shard

from nano3.config.errors import UserError
from nano3.parallel.experts import divide_experts
from nano3.parallel.layout import EXPERT_AXES, Layout
from nano3.parallel.shards import shard_axis


def shard(model: Any, layout: Layout, processes: DeviceMesh) -> None:
    """Shard `model` (with `.blocks` and `.hidden`), in place; float32 is gathered and reduced in float32.

    Gradients are summed over all processes, never averaged: the loss is normalised over the global batch. Those of
    experts arrive summed over the processes of an exchange, and are summed over the others that hold the same experts.

    Args:
        model: its parameters may be on the meta device.
        layout: of these processes.
        processes: all of them as a mesh of one axis.
    """
    dense = processes
    if layout.replicate > 1:
        shape = (layout.replicate, layout.replica)
        dense = init_device_mesh(processes.device_type, shape, mesh_dim_names=EXPERT_AXES[:2])
    place = _place_experts(model, layout, dense) if layout.expert > 1 else None
    for block in model.blocks:
        fully_shard(block, mesh=dense, shard_placement_fn=place)
    # The output projection is used after `hidden` returns, so the root's weights stay gathered until the backward.
    fully_shard(model, mesh=dense, reshard_after_forward=False)
    register_fsdp_forward_method(model, "hidden")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _place_experts(model: nn.Module, layout: Layout, dense: DeviceMesh) -> Any:
    """Divides the experts; returns what tells FSDP over which processes, and how, each parameter is sharded."""
    try:
        from torch.distributed.fsdp._fully_shard._fsdp_common import ShardPlacementResult
    except ImportError as error:
        raise UserError("parallel.expert needs PyTorch 2.13 or newer: FSDP over two sets of processes") from error
    mesh = init_device_mesh(dense.device_type, layout.expert_shape, mesh_dim_names=EXPERT_AXES)
    divided = divide_experts(model, mesh[EXPERT_AXES[2]])
    replicas = layout.replicate > 1
    of_experts = _info(mesh[EXPERT_AXES[:2]] if replicas else mesh[EXPERT_AXES[1]], replicas)
    of_others = _info(dense, replicas)
    shards = layout.expert_shape[1]

    def place(parameter: nn.Parameter) -> Any:
        if parameter not in divided:
            return ShardPlacementResult(Shard(0), of_others)
        return ShardPlacementResult(Shard(shard_axis(tuple(parameter.shape), shards)), of_experts)

    return place


def _info(mesh: DeviceMesh, replicas: bool) -> FSDPMeshInfo:
    if replicas:
        return HSDPMeshInfo(mesh=mesh, shard_mesh_dim=1, replicate_mesh_dim=0)
    return FSDPMeshInfo(mesh=mesh, shard_mesh_dim=0)
