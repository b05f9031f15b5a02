"""The part of a tensor that this process holds: all of it, or a shard under FSDP."""

from __future__ import annotations

import torch
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether a parameter or buffer is a DTensor."""
    return hasattr(tensor, "device_mesh")


def local_part(tensor: Tensor) -> tuple[Tensor, tuple[slice, ...]]:
    """This rank's values of a parameter or buffer, to be written in place, and where they lie in the whole tensor."""
    if not is_sharded(tensor):
        return tensor.detach(), tuple(slice(0, size) for size in tensor.shape)
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    assert isinstance(tensor, DTensor)
    shape, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    places = tuple(slice(start, start + size) for start, size in zip(offsets, shape, strict=True))
    with torch.no_grad():
        return tensor.to_local(), places
