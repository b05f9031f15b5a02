"""Attention in C++: single queries over pages (src/attention.inl), many queries (src/flash.inl)."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_int64
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..common import matmul_dtype
from ..eager import FUNCTIONS as EAGER
from .call import I, Kernel, L, P, declare, empty, integers, normal, plain, readable, run
from .native import TYPES

MOST_HEADS = 64
"""Most query heads a key head."""
declare(
    paged_attention=(P, P, P, I, L, P, L, P, L, L, L, L, L, P),
    paged_queries=(P, P, P, I, L, P, L, P, P, L, L, L, L, L, P),
    attention=(P, P, P, P, I, L, L, L, L, L, L, P, P, P),
    attention_backward=(P, P, P, P, P, I, P, P, L, L, L, L, L, L, P, P, P, P),
)


def attention(q: Tensor, k: Tensor, v: Tensor, *, document_ids: Tensor | None = None) -> Tensor:
    """See nano3.kernels.attention."""
    if not _fits(q, k, v) or (document_ids is not None and q.shape[1] != k.shape[1]):
        return EAGER["attention"](q, k, v, document_ids=document_ids)
    starts = None if document_ids is None else _starts(document_ids)
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return _Attention.apply(q, k, v, starts)
    return _attend(q, k, v, starts, log_sums=False)[0]


class _Attention(torch.autograd.Function):
    """Keeps, besides its inputs and the output, one number a query and head."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None) -> Tensor:
        out, log_sums = _attend(q, k, v, starts, log_sums=True)
        ctx.save_for_backward(q, k, v, out, log_sums, starts)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor):
        q, k, v, out, log_sums, starts = ctx.saved_tensors
        inputs = [_rows(m) for m in (q, k, v, dout)]
        (B, T, Hq, Dh), (S, Hkv) = q.shape, k.shape[1:3]
        grads = [empty(m.shape, dtype=m.dtype) for m in (q, k, v)]
        done = run(
            "attention_backward", *(m.data_ptr() for m in inputs), _strides(*inputs), TYPES[q.dtype], out.data_ptr(),
            log_sums.data_ptr(), B, T, S, Hkv, Hq // Hkv, Dh, None if starts is None else starts.data_ptr(),
            *(m.data_ptr() for m in grads),
        )  # fmt: skip
        if not done:
            raise MemoryError("attention: no memory for its buffers")
        return *grads, None


def _fits(q: Tensor, k: Tensor, v: Tensor) -> bool:
    if torch.compiler.is_compiling() or not q.dtype == k.dtype == v.dtype or not readable(q, k, v):
        return False
    shapes = k.shape == v.shape and q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3]
    return shapes and q.numel() > 0 and q.shape[2] // k.shape[2] <= MOST_HEADS and _fast_here(q)


def _fast_here(q: Tensor) -> bool:
    """Whether products of this type are made in float32: where matrix instructions take bf16, PyTorch is faster."""
    return matmul_dtype(q.dtype, q.device) == torch.float32


def _starts(document_ids: Tensor) -> Tensor:
    """(B, T) ids -> (B, T) int64 position at which each token's document starts."""
    places = torch.arange(document_ids.shape[1], device="cpu").expand(document_ids.shape)
    starts = torch.zeros(document_ids.shape, dtype=torch.int64, device="cpu")
    new = document_ids[:, 1:] != document_ids[:, :-1]
    starts[:, 1:] = torch.where(new, places[:, 1:], 0)
    return starts.cummax(1).values


def _rows(m: Tensor) -> Tensor:
    """Its last dimension dense."""
    return m if m.stride(-1) == 1 else m.contiguous()


def _attend(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, *, log_sums: bool) -> tuple[Tensor, Tensor | None]:
    q, k, v = _rows(q), _rows(k), _rows(v)
    (B, T, Hq, Dh), (S, Hkv) = q.shape, k.shape[1:3]
    out = empty(q.shape, dtype=q.dtype)
    sums = empty(q.shape[:3]) if log_sums else None
    done = run(
        "attention", q.data_ptr(), k.data_ptr(), v.data_ptr(), _strides(q, k, v), TYPES[q.dtype], B, T, S, Hkv,
        Hq // Hkv, Dh, None if starts is None else starts.data_ptr(), out.data_ptr(),
        None if sums is None else sums.data_ptr(),
    )  # fmt: skip
    if not done:
        raise MemoryError("attention: no memory for its buffers")
    return out, sums


def _strides(*tensors: Tensor):
    """(B, T, H) strides of each, one after another."""
    numbers = [step for m in tensors for step in m.stride()[:3]]
    return (c_int64 * len(numbers))(*numbers)


def paged_attention(
    q: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
) -> Tensor:
    """See nano3.kernels.paged_attention."""
    fits = key_pages.shape == value_pages.shape and key_pages.shape[3] == q.shape[2] and q.numel() > 0
    fits = fits and page_table.dtype == torch.int64 and page_table.shape[0] == len(query_lengths)
    fits = fits and q.dtype == key_pages.dtype == value_pages.dtype and plain(q, key_pages, value_pages)
    single = fits and max(query_lengths) == min(query_lengths) == 1
    if not single and not (fits and _fast_here(q) and q.shape[1] // key_pages.shape[2] <= MOST_HEADS):
        return EAGER["paged_attention"](q, key_pages, value_pages, page_table, query_lengths, key_lengths)
    y, page_table = torch.empty_like(q), page_table.contiguous()
    queries, keys = (integers(lengths) for lengths in (query_lengths, key_lengths))
    size, heads = key_pages.shape[1:3]
    if single:
        done = run(
            "paged_attention", q.data_ptr(), key_pages.data_ptr(), value_pages.data_ptr(), TYPES[q.dtype],
            key_pages.shape[0], page_table.data_ptr(), page_table.shape[1], keys.data_ptr(), q.shape[0], heads,
            q.shape[1] // heads, q.shape[2], size, y.data_ptr(),
        )  # fmt: skip
    else:
        done = run(
            "paged_queries", q.data_ptr(), key_pages.data_ptr(), value_pages.data_ptr(), TYPES[q.dtype],
            key_pages.shape[0], page_table.data_ptr(), page_table.shape[1], queries.data_ptr(), keys.data_ptr(),
            len(query_lengths), heads, q.shape[1] // heads, q.shape[2], size, y.data_ptr(),
        )  # fmt: skip
    if not done:
        return EAGER["paged_attention"](q, key_pages, value_pages, page_table, query_lengths, key_lengths)
    return y


def _attention_case(g: torch.Generator, dtype: torch.dtype) -> tuple:
    q, k, v = (normal(g, dtype, 2, 9, heads, 11) for heads in (6, 2, 2))
    return q, k, v


def _paged_case(g: torch.Generator, dtype: torch.dtype) -> tuple:
    table = integers([[3, 0, 5], [2, 1, 4]])
    pages = (normal(g, dtype, 6, 4, 2, 11) for _ in range(2))
    return normal(g, dtype, 2, 6, 11), *pages, table, [1, 1], [10, 5]


KERNELS = {
    "attention": Kernel(attention, "products in float32", _attention_case, True),
    "paged_attention": Kernel(paged_attention, "decoding, and products in float32", _paged_case),
}
