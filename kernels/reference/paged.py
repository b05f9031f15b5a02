"""Attention over keys and values in pages (arXiv 2309.06180), one sequence after another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..common import accumulator
from .attention import attention


def paged_attention(
    q: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
) -> Tensor:
    """See nano3.kernels.paged_attention."""
    outputs, start = [], 0
    for row, (queries, keys) in enumerate(zip(query_lengths, key_lengths, strict=True)):
        k = key_pages[page_table[row]].flatten(0, 1)[:keys]
        v = value_pages[page_table[row]].flatten(0, 1)[:keys]
        outputs.append(attention(q[None, start : start + queries], k[None].to(q.dtype), v[None].to(q.dtype))[0])
        start += queries
    return torch.cat(outputs) if outputs else torch.empty_like(q)


def paged_decode(
    q: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    counts: Tensor,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> Tensor:
    """See nano3.kernels.paged_decode."""
    wide, size = accumulator(q.dtype), key_pages.shape[1]
    out = torch.zeros_like(q)
    for row, count in enumerate(counts.tolist()):
        if not count:
            continue
        pages = page_table[row, : -(-count // size)].long()
        k, v = (m[pages].flatten(0, 1)[:count].to(wide) for m in (key_pages, value_pages))
        k = k if key_scale is None else k * key_scale.to(wide)
        v = v if value_scale is None else v * value_scale.to(wide)
        out[row] = attention(q[row].to(wide)[None, None], k[None], v[None])[0, 0].to(q.dtype)
    return out
