"""Attention in C++."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..eager import FUNCTIONS as EAGER
from .call import I, Kernel, L, P, declare, normal, plain, run
from .native import TYPES

declare(paged_attention=(P, P, P, I, P, L, P, L, L, L, L, L, P))


def paged_attention(
    q: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
) -> Tensor:
    """See nano3.kernels.paged_attention."""
    single = bool(query_lengths) and max(query_lengths) == min(query_lengths) == 1 and min(key_lengths) > 0
    single = single and key_pages.shape == value_pages.shape and key_pages.shape[3] == q.shape[2]
    if not single or q.dtype != key_pages.dtype or not plain(q, key_pages, value_pages):
        return EAGER["paged_attention"](q, key_pages, value_pages, page_table, query_lengths, key_lengths)
    y, lengths, page_table = torch.empty_like(q), torch.tensor(key_lengths), page_table.contiguous()
    heads, width = key_pages.shape[2], q.shape[2]
    done = run(
        "paged_attention", q.data_ptr(), key_pages.data_ptr(), value_pages.data_ptr(), TYPES[q.dtype],
        page_table.data_ptr(), page_table.shape[1], lengths.data_ptr(), q.shape[0], heads, q.shape[1] // heads, width,
        key_pages.shape[1], y.data_ptr(),
    )  # fmt: skip
    if not done:
        return EAGER["paged_attention"](q, key_pages, value_pages, page_table, query_lengths, key_lengths)
    return y


def _attention(g: torch.Generator, dtype: torch.dtype) -> tuple:
    table = torch.tensor([[3, 0, 5], [2, 1, 4]])
    pages = (normal(g, dtype, 6, 4, 2, 11) for _ in range(2))
    return normal(g, dtype, 2, 6, 11), *pages, table, [1, 1], [10, 5]


KERNELS = {"paged_attention": Kernel(paged_attention, "decoding", _attention)}
