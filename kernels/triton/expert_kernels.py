"""Triton kernels of routed experts: choices sorted by expert, the two products, the weighted sum of each token.

Grids are made from upper bounds; how many choices an expert has is read on the device. Nothing is added by atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sort_kernel(IDS, ORDER, ENDS, choices, CHUNK: tl.constexpr):
    """ORDER: the numbers of the choices by expert, those of one expert as they came; ENDS[e]: where those of e end.
    One program an expert. An id below 0 or beyond the last expert has no place."""
    e, i = tl.program_id(0), tl.arange(0, CHUNK)
    before = tl.zeros((CHUNK,), tl.int32)
    for start in range(0, choices, CHUNK):
        expert = tl.load(IDS + start + i, mask=start + i < choices, other=-1)
        before += ((expert >= 0) & (expert < e)).to(tl.int32)
    place = tl.sum(before, 0)
    for start in range(0, choices, CHUNK):
        expert = tl.load(IDS + start + i, mask=start + i < choices, other=-1)
        own = (expert == e).to(tl.int32)
        tl.store(ORDER + place + tl.cumsum(own, 0) - own, start + i, mask=expert == e)
        place += tl.sum(own, 0)
    tl.store(ENDS + e, place)


@triton.jit
def _block(ENDS, block, E, EXPERTS: tl.constexpr, ROWS: tl.constexpr):
    """Of block number `block` of up to ROWS sorted choices of one expert: the expert (E or more: there is no such
    block), its first choice, and where the expert's end."""
    i = tl.arange(0, EXPERTS)
    end = tl.load(ENDS + i, mask=i < E, other=0)
    begin = tl.load(ENDS + i - 1, mask=(i > 0) & (i < E), other=0)
    blocks = (end - begin + ROWS - 1) // ROWS
    expert = tl.sum((tl.cumsum(blocks, 0) <= block).to(tl.int32), 0)
    skipped = tl.sum(tl.where(i < expert, blocks, 0), 0)
    first = tl.sum(tl.where(i == expert, begin, 0), 0) + (block - skipped) * ROWS
    return expert, first, tl.sum(tl.where(i == expert, end, 0), 0)


@triton.jit
def _add_product(total, a, b, SCALED: tl.constexpr, DEPTH: tl.constexpr, DOT: tl.constexpr):
    """total + a b. Hopper's sums of e4m3 products have 14 bits: each block's goes into float32 by itself."""
    if SCALED:
        return tl.dot(a, b, total, max_num_imprecise_acc=DEPTH)
    return tl.dot(a, b, total, input_precision=DOT)


@triton.jit
def _activated(total, INPUT_SCALE, SCALED: tl.constexpr, TYPE: tl.constexpr):
    """relu(total)^2; SCALED: of numbers of TYPE, divided by the scale of the next product's inputs, up to 448."""
    if SCALED:
        total = total.to(TYPE).to(tl.float32)
    total = tl.maximum(total, 0.0, propagate_nan=tl.PropagateNan.ALL)
    total *= total
    if SCALED:
        total = tl.div_rn(total.to(TYPE).to(tl.float32), tl.zeros_like(total) + tl.load(INPUT_SCALE))
        total = tl.minimum(total, 448.0, propagate_nan=tl.PropagateNan.ALL)
    return total


@triton.jit
def product_kernel(
    X, W, ORDER, ENDS, SCALES, INPUT_SCALE, OUT, E, top_k, width, depth, x_row, w_expert, w_row,
    FIRST: tl.constexpr, SCALED: tl.constexpr, SWAPPED: tl.constexpr, EXPERTS: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, DEPTH: tl.constexpr, DOT: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """A tile of the products of some sorted choices of one expert with its matrix (width, depth).

    FIRST: rows of X are tokens, and OUT (choices, width) = relu(product)^2 of the sorted choices; else rows of X are
    sorted choices, and OUT gets them in the order of the tokens. SWAPPED: the matrix is the left factor, since matrix
    units take 64 rows on the left and as few as 8 columns on the right. SCALED: X, W, and OUT of the first product are
    e4m3, products are times SCALES (E,), and the first's results are divided by INPUT_SCALE.
    """
    tiles = tl.cdiv(width, COLUMNS)
    expert, first, end = _block(ENDS, tl.program_id(0) // tiles, E, EXPERTS, ROWS)
    if expert < E:
        n, k = (tl.program_id(0) % tiles) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, DEPTH)
        m = first + tl.arange(0, ROWS)
        choice = tl.load(ORDER + m, mask=m < end, other=0)
        if FIRST:
            source, target = (choice // top_k).to(tl.int64), m.to(tl.int64)
        else:
            source, target = m.to(tl.int64), choice.to(tl.int64)
        rows = X + source[:, None] * x_row + k[None, :]
        matrix = W + expert.to(tl.int64) * w_expert + n.to(tl.int64)[:, None] * w_row + k[None, :]
        if SWAPPED:
            total = tl.zeros((COLUMNS, ROWS), tl.float32)
        else:
            total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for start in range(0, depth, DEPTH):
            inside = (start + k < depth)[None, :]
            x = tl.load(rows + start, mask=(m < end)[:, None] & inside, other=0.0)
            w = tl.load(matrix + start, mask=(n < width)[:, None] & inside, other=0.0)
            if SWAPPED:
                total = _add_product(total, w, tl.trans(x), SCALED, DEPTH, DOT)
            else:
                total = _add_product(total, x, tl.trans(w), SCALED, DEPTH, DOT)
        if SCALED:
            total *= tl.load(SCALES + expert)
        if FIRST:
            total = _activated(total, INPUT_SCALE, SCALED, TYPE)
        out = total.to(OUT.dtype.element_ty)
        if SWAPPED:
            at = OUT + target[None, :] * width + n[:, None]
            tl.store(at, out, mask=(m < end)[None, :] & (n < width)[:, None])
        else:
            at = OUT + target[:, None] * width + n[None, :]
            tl.store(at, out, mask=(m < end)[:, None] & (n < width)[None, :])


@triton.jit
def sum_kernel(PARTS, IDS, WEIGHTS, OUT, E, D, K: tl.constexpr, BLOCK: tl.constexpr):
    """OUT (S, D) = sum over k of WEIGHTS (S, K) * PARTS (S, K, D), in that order; nan where an expert is not there."""
    s, d = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in tl.static_range(K):  # type: ignore[misc]
        expert, weight = tl.load(IDS + s * K + k), tl.load(WEIGHTS + s * K + k).to(tl.float32)
        weight = tl.where((expert >= 0) & (expert < E), weight, float("nan"))
        total += weight * tl.load(PARTS + (s * K + k) * D + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(OUT + s * D + d, total.to(OUT.dtype.element_ty), mask=d < D)
