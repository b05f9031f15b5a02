"""Attention of several queries a sequence over keys and values in pages: prefill, and prefill behind a cache."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..eager import FUNCTIONS as EAGER
from .call import Kernel, guarded, launch, normal, power_of_2
from .paged import KEYS, LOG2_E, STAGE_BYTES, converted, paged_decode, products, takes

QUERIES, QUERIES_FLOAT32 = 128, 32
"""Queries that a program takes."""
WIDEST = 128
"""Of a head: wider ones would not fit into registers."""


@triton.jit
def queries_kernel(
    Q, K, V, TABLE, LENGTHS, OUT, n, q_row, q_head, page_stride, place_stride, head_stride, table_row, scale, R, D,
    PAGE, QUERIES: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """OUT of some queries of one head of one sequence, with a running softmax (arXiv 2205.14135).

    LENGTHS (3, n): each sequence's first row of Q, its queries, its keys."""
    block, h, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first_row, queries, keys = (tl.load(LENGTHS + b), tl.load(LENGTHS + n + b), tl.load(LENGTHS + 2 * n + b))
    m, d, i = block * QUERIES + tl.arange(0, QUERIES), tl.arange(0, WIDTH), tl.arange(0, KEYS)
    if block * QUERIES < queries:
        row = (first_row + m).to(tl.int64)
        inside = (m < queries)[:, None] & (d < D)[None, :]
        q = tl.load(Q + row[:, None] * q_row + h * q_head + d[None, :], mask=inside, other=0.0)
        position = keys - queries + m
        last = tl.minimum(keys, keys - queries + (block + 1) * QUERIES)
        best, total = tl.full((QUERIES,), float("-inf"), tl.float32), tl.zeros((QUERIES,), tl.float32)
        out = tl.zeros((QUERIES, WIDTH), tl.float32)
        for start in range(0, last, KEYS):
            t = start + i
            page = tl.load(TABLE + b.to(tl.int64) * table_row + t // PAGE, mask=t < last, other=0).to(tl.int64)
            at = (page * page_stride + (t % PAGE) * place_stride + (h // R) * head_stride)[:, None] + d[None, :]
            held = (t < last)[:, None] & (d < D)[None, :]  # pages hold whatever was there: 0 * nan is nan
            k = converted(tl.load(K + at, mask=held, other=0.0), Q)
            scores = tl.dot(q, tl.trans(k), input_precision=DOT) * scale
            scores = tl.where((t[None, :] <= position[:, None]) & (t < last)[None, :], scores, float("-inf"))
            most = tl.maximum(best, tl.max(scores, 1))
            p = tl.exp2(scores - most[:, None])
            shrink = tl.exp2(best - most)
            v = converted(tl.load(V + at, mask=held, other=0.0), Q)
            out = out * shrink[:, None] + tl.dot(p.to(Q.dtype.element_ty), v, input_precision=DOT)
            total = total * shrink + tl.sum(p, 1)
            best = most
        out /= total[:, None]
        heads = tl.num_programs(1)
        tl.store(OUT + (row * heads + h)[:, None] * D + d[None, :], out.to(OUT.dtype.element_ty), mask=inside)


def paged_attention(
    q: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
) -> Tensor:
    """See nano3.kernels.paged_attention: sequences with one query as `paged_decode`, the others here."""
    if q.shape[2] > WIDEST or not takes(q, key_pages, value_pages, page_table, page_table, None, None):
        return EAGER["paged_attention"](q, key_pages, value_pages, page_table, query_lengths, key_lengths)
    starts = list(accumulate(query_lengths, initial=0))
    single = [row for row, queries in enumerate(query_lengths) if queries == 1]
    several = [row for row, queries in enumerate(query_lengths) if queries > 1]
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if several:
        lengths = [[numbers[row] for row in several] for numbers in (starts, query_lengths, key_lengths)]
        table = page_table[_integers(several, q.device)]
        _attend(q, key_pages, value_pages, table, _integers(lengths, q.device), max(lengths[1]), out)
    if single:
        counts = _integers([key_lengths[row] for row in single], q.device)
        if len(single) == len(query_lengths):
            return paged_decode(q, key_pages, value_pages, page_table, counts)
        rows, places = _integers(single, q.device), _integers([starts[row] for row in single], q.device)
        out[places] = paged_decode(q[places], key_pages, value_pages, page_table[rows], counts)
    return out


def _attend(q: Tensor, keys: Tensor, values: Tensor, table: Tensor, lengths: Tensor, longest: int, out: Tensor) -> None:
    q, (Hq, D) = q if q.stride(2) == 1 else q.contiguous(), q.shape[1:]
    width = max(power_of_2(D), 16)
    stages = STAGE_BYTES // (2 * KEYS * width * keys.element_size())
    queries, warps = (QUERIES_FLOAT32, 4) if q.dtype == torch.float32 else (QUERIES, 8)
    launch(
        queries_kernel, (-(-longest // queries), Hq, len(table)), q, keys, values, table, lengths, out, len(table),
        q.stride(0), q.stride(1), *keys.stride()[:3], table.stride(0), D**-0.5 * LOG2_E, Hq // keys.shape[2], D,
        keys.shape[1], QUERIES=queries, WIDTH=width, **products(q.dtype), num_warps=warps,
        num_stages=min(max(stages, 1), 3),
    )  # fmt: skip


def _integers(numbers: Sequence, device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32, device=device)


def _case(g: torch.Generator, dtype: torch.dtype) -> tuple:
    pages = (normal(g, dtype, 40, 8, 2, 24) for _ in range(2))
    table = torch.arange(39, -1, -1, device="cpu").view(2, 20)
    return normal(g, dtype, 6, 6, 24), *pages, table, [5, 1], [150, 9]


KERNELS = {"paged_attention": Kernel(guarded(paged_attention, EAGER["paged_attention"]), "heads up to 128 wide", _case)}
