"""Numbers on a device that the host knows as well: to look for them there would make it wait for all work before.

Targets, document ids and padding come from the host. Who sends them says so (`remember`); who needs to know how many
there are of something asks here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary


class _Copy(NamedTuple):
    version: int
    """Of the tensor on the device, when it held these numbers."""
    host: Tensor


_COPIES = WeakIdKeyDictionary()
"""Tensor on a device -> _Copy, as long as the tensor lives."""


def send(host: Tensor, device: torch.device) -> Tensor:
    """A copy on `device`, which the host does not wait for: what it sends from other memory than pinned, it waits to
    send."""
    return (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)


def remember(tensor: Tensor, host: Tensor) -> None:
    """`tensor` holds the numbers of `host`, a CPU tensor that nobody changes; until something is written to it."""
    if not tensor.is_inference() and tensor.is_contiguous() and tensor.storage_offset() == 0 and tensor is not host:
        _COPIES[tensor] = _Copy(tensor._version, host.contiguous())


def known(tensor: Tensor) -> Tensor | None:
    """The numbers of a tensor, or of a view of one that is remembered, on the CPU; None where only the device knows."""
    if tensor.device.type == "cpu":
        return tensor
    if tensor.is_inference():
        return None
    base = tensor if tensor._base is None else tensor._base
    copy = _COPIES.get(base)
    if copy is None or copy.version != tensor._version or tensor.dtype != base.dtype:
        return None
    offset = copy.host.storage_offset() + tensor.storage_offset()  # the host's may be part of a larger tensor
    return copy.host.as_strided(tensor.shape, tensor.stride(), offset)


def highest(tensor: Tensor) -> int:
    """The largest number of an integer tensor."""
    host = known(tensor)
    return int((tensor if host is None else host).max())


def places(tensor: Tensor, where: Callable[[Tensor], Tensor]) -> Tensor:
    """The places (n,) int64 at which `where(tensor)` (S,) is true, on the tensor's device. The host waits for that only
    where it does not know the numbers."""
    host = known(tensor)
    if host is None:
        return where(tensor).nonzero().squeeze(1)
    found = where(host).nonzero().squeeze(1)
    return found if tensor.device.type == "cpu" else send(found, tensor.device)
