"""Small helpers that the backends share: accumulator types, document segments, cache-sized blocks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CACHE_BLOCK_BYTES = 1024 * 1024
"""Bytes of one operand that a blocked CPU loop works on at a time, so that its passes stay in the L2 cache."""

LEAST_LOG_PROB = -1e3
"""Floor under log-probabilities that are multiplied by their probabilities, 0 there in any type: -inf gives nan."""


class ForNow(str):
    """A reason that may be gone at the next call, such as that memory is full."""

    __slots__ = ()


def located(device: torch.device) -> torch.device:
    """The device with its number: `cuda` without one is PyTorch's current one."""
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return device


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type sums are kept in: float64 for float64 input, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def segments(document_ids: Tensor) -> Tensor:
    """(B, T) ids of any kind -> (B, T) int64 running document numbers 0, 1, ...: equal only inside one document.

    A document starts at t = 0 and wherever the id differs from the one before, so an id may come back later in a row.
    """
    starts = torch.zeros_like(document_ids, dtype=torch.int64)
    starts[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return starts.cumsum(1)


def row_blocks(rows: int, row_bytes: int, device: torch.device) -> Iterator[slice]:
    """Slices that cover `rows` rows: cache-sized pieces on CPU, one piece on other devices."""
    step = max(1, CACHE_BLOCK_BYTES // max(1, row_bytes)) if device.type == "cpu" else max(1, rows)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def matmul_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The input type in which matrix products of `dtype` activations run fastest on `device`.

    bf16 and fp16 products on a CPU without matrix or dot-product instructions for them run at half the fp32 speed.
    """
    if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return dtype
    has_fast_half = torch.cpu._is_amx_tile_supported() or (
        dtype == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported()
    )
    return dtype if has_fast_half else torch.float32


def kept_rows(kept: Tensor) -> Tensor | None:
    """(S,) bool -> the places that are true, (n,) int64; None when all are, so that nothing need be copied."""
    rows = kept.nonzero().squeeze(1)
    return None if rows.numel() == kept.numel() else rows
