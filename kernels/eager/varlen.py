"""Attention within packed documents in one call of PyTorch's flash attention for sequences of many lengths."""

from __future__ import annotations

from inspect import signature
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor

from ..host_copies import known, send


class Bounds(NamedTuple):
    """Where the documents of a batch lie once its rows stand one after another."""

    ends: Tensor
    """(number of documents + 1,) int32: 0, and where each document ends."""
    longest: int
    """Tokens of the longest document."""


class _Last(NamedTuple):
    ids: ref[Tensor]
    version: int
    bounds: Bounds


_last: list[_Last] = []
"""The bounds made last: every attention layer of a pass asks for the same ones."""


def bounds(document_ids: Tensor) -> Bounds:
    """The documents of (B, T) ids. The host waits for the device only where it does not know them, and then once a
    batch, not once a layer."""
    version = -1 if document_ids.is_inference() else document_ids._version
    for last in _last[:1]:
        if version >= 0 and last.ids() is document_ids and last.version == version:
            return last.bounds
    found = _bounds(document_ids)
    _last[:] = [_Last(ref(document_ids), version, found)]
    return found


def _bounds(document_ids: Tensor) -> Bounds:
    if (host := known(document_ids)) is not None and host is not document_ids:
        ends, longest = _bounds(host)
        return Bounds(send(ends, document_ids.device), longest)
    starts = torch.ones_like(document_ids, dtype=torch.bool)
    starts[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    ends = torch.cat([starts.flatten().nonzero().squeeze(1), starts.new_tensor([starts.numel()], dtype=torch.int64)])
    return Bounds(ends.to(torch.int32), int(ends.diff().max()))


def suits(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether PyTorch's flash attention takes these (B, T, heads, Dh): half precision on CUDA, heads up to 256 wide."""
    half = q.dtype in (torch.float16, torch.bfloat16) and q.dtype == k.dtype == v.dtype
    return half and q.device.type == "cuda" and q.numel() > 0 and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256


def attend_packed(q: Tensor, k: Tensor, v: Tensor, document_ids: Tensor) -> Tensor:
    """Causal attention within each document of (B, T) ids; q (B, T, Hq, Dh), k and v (B, T, Hkv, Dh)."""
    from torch.nn.attention.varlen import varlen_attn  # slow to import

    ends, longest = bounds(document_ids)
    names = signature(varlen_attn).parameters
    options: dict[str, Any] = {}
    if "enable_gqa" in names:
        options["enable_gqa"] = q.shape[2] != k.shape[2]
    elif q.shape[2] != k.shape[2]:  # PyTorch before 2.13
        k, v = (m.repeat_interleave(q.shape[2] // k.shape[2], dim=2) for m in (k, v))
    if "window_size" in names:
        options["window_size"] = (-1, 0)
    else:
        options["is_causal"] = True
    packed = [m.flatten(0, 1) for m in (q, k, v)]
    out = varlen_attn(packed[0], packed[1], packed[2], ends, ends, longest, longest, **options)
    assert isinstance(out, Tensor)  # a pair only where the sums are asked for too
    return out.view_as(q)
