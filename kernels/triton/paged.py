"""Attention of one query a sequence over keys and values in pages (arXiv 2309.06180), the keys split over programs.

A program takes all query heads of one key head of one sequence and a share of its keys, with a running softmax (arXiv
2205.14135); a second kernel joins the shares by their sums (flash decoding). Shares are cut from the sequence's own
length, which only the device knows.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..eager import FUNCTIONS as EAGER
from ..scaled import E4M3
from .call import INTERPRETED, TYPES, Kernel, fits, guarded, launch, normal, power_of_2

KEYS, KEYS_FLOAT32 = 64, 32
"""Keys that a program takes at a time."""
MOST_SPLITS, MOST_HEADS, WIDEST = 128, 64, 256
"""Shares of a sequence, query heads of a key head, width of a head."""
MOST_FLOAT32 = 64 * 128
"""Most query heads of a key head times width in float32: more need more shared memory than smaller GPUs have."""
STAGE_BYTES = 96 * 1024
"""Of keys and values on their way, so that any GPU has room."""
LOG2_E = 1.4426950408889634


@triton.jit
def converted(x, like):
    """Keys or values in the type that `like` points at. Triton 3.6 makes bfloat16 of e4m3 by an instruction that only
    Hopper has; by way of float32 it does so anywhere."""
    if x.dtype == tl.float8e4nv:
        x = x.to(tl.float32)
    return x.to(like.dtype.element_ty)


@triton.jit
def decode_kernel(
    Q, K, V, TABLE, COUNTS, KEY_SCALE, VALUE_SCALE, PARTIAL, LOG_SUM, OUT, q_row, q_head, page_stride, place_stride,
    head_stride, table_row, scale, R, D, PAGE, SPLITS: tl.constexpr, HAS_KEY_SCALE: tl.constexpr,
    HAS_VALUE_SCALE: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """One share of one key head of one sequence: its attention into PARTIAL and the log2 of its sum of exponentials
    into LOG_SUM, -inf where it has no key; with one share a sequence, the result into OUT."""
    split, g, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    r, d, i = tl.arange(0, ROWS), tl.arange(0, WIDTH), tl.arange(0, KEYS)
    heads = tl.num_programs(1) * R
    inside = (r < R)[:, None] & (d < D)[None, :]
    q = tl.load(Q + b * q_row + (g * R + r)[:, None] * q_head + d[None, :], mask=inside, other=0.0)
    if HAS_KEY_SCALE:
        scale *= tl.load(KEY_SCALE).to(tl.float32)
    count = tl.load(COUNTS + b).to(tl.int32)
    share = tl.cdiv(tl.cdiv(count, SPLITS), KEYS) * KEYS
    first = split * share
    last = tl.minimum(first + share, count)
    best, total = tl.full((ROWS,), float("-inf"), tl.float32), tl.zeros((ROWS,), tl.float32)
    out = tl.zeros((ROWS, WIDTH), tl.float32)
    for start in range(first, last, KEYS):
        t = start + i
        seen = t < last
        page = tl.load(TABLE + b * table_row + t // PAGE, mask=seen, other=0).to(tl.int64)
        at = (page * page_stride + (t % PAGE) * place_stride + g * head_stride)[:, None] + d[None, :]
        held = seen[:, None] & (d < D)[None, :]  # pages hold whatever was there: 0 * nan is nan
        k = converted(tl.load(K + at, mask=held, other=0.0), Q)
        scores = tl.dot(q, tl.trans(k), input_precision=DOT) * scale
        scores = tl.where(seen[None, :], scores, float("-inf"))
        most = tl.maximum(best, tl.max(scores, 1))
        p = tl.exp2(scores - most[:, None])
        shrink = tl.exp2(best - most)
        v = converted(tl.load(V + at, mask=held, other=0.0), Q)
        out = out * shrink[:, None] + tl.dot(p.to(Q.dtype.element_ty), v, input_precision=DOT)
        total = total * shrink + tl.sum(p, 1)
        best = most
    total = tl.where(last > first, total, 1.0)  # without a key `out` is 0
    out = out / total[:, None]
    if HAS_VALUE_SCALE:
        out *= tl.load(VALUE_SCALE).to(tl.float32)
    row = b * heads + g * R + r
    if SPLITS == 1:
        tl.store(OUT + row[:, None] * D + d[None, :], out.to(OUT.dtype.element_ty), mask=inside)
    else:
        tl.store(PARTIAL + (row * SPLITS + split)[:, None] * D + d[None, :], out, mask=inside)
        tl.store(
            LOG_SUM + row * SPLITS + split, tl.where(last > first, best + tl.log2(total), float("-inf")), mask=r < R
        )


@triton.jit
def join_kernel(PARTIAL, LOG_SUM, OUT, D, SPLITS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """OUT = the attention of one head of one sequence, from its shares; 0 where no share has a key."""
    row = tl.program_id(0).to(tl.int64)
    s, d = tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    sums = tl.load(LOG_SUM + row * SPLITS + s, mask=s < SPLITS, other=float("-inf"))
    used = sums != float("-inf")
    most = tl.max(sums, 0)
    weight = tl.where(used, tl.exp2(sums - tl.where(most == float("-inf"), 0.0, most)), 0.0)
    shares = tl.load(
        PARTIAL + (row * SPLITS + s)[:, None] * D + d[None, :], mask=used[:, None] & (d < D)[None, :], other=0.0
    )
    total = tl.sum(weight, 0)
    out = tl.sum(shares * weight[:, None], 0) / tl.where(total == 0, 1.0, total)
    tl.store(OUT + row * D + d, out.to(OUT.dtype.element_ty), mask=d < D)


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
    if not takes(q, key_pages, value_pages, page_table, counts, key_scale, value_scale):
        return EAGER["paged_decode"](q, key_pages, value_pages, page_table, counts, key_scale, value_scale)
    q = q if q.stride(2) == 1 else q.contiguous()
    counts, page_table = counts.contiguous(), page_table if page_table.stride(1) == 1 else page_table.contiguous()
    (B, Hq, D), (size, Hkv) = q.shape, key_pages.shape[1:3]
    splits, width = splits_of(B * Hkv, page_table.shape[1] * size, q.device), max(power_of_2(D), 16)
    out = torch.empty((B, Hq, D), dtype=q.dtype, device=q.device)
    partial, log_sum = out, out
    if splits > 1:
        partial = torch.empty((B, Hq, splits, D), dtype=torch.float32, device=q.device)
        log_sum = torch.empty((B, Hq, splits), dtype=torch.float32, device=q.device)
    stages = STAGE_BYTES // (2 * KEYS * width * key_pages.element_size())
    launch(
        decode_kernel, (splits, Hkv, B), q, key_pages, value_pages, page_table, counts,
        q if key_scale is None else key_scale, q if value_scale is None else value_scale, partial, log_sum, out,
        q.stride(0), q.stride(1), *key_pages.stride()[:3], page_table.stride(0), D**-0.5 * LOG2_E, Hq // Hkv, D, size,
        SPLITS=splits, HAS_KEY_SCALE=key_scale is not None, HAS_VALUE_SCALE=value_scale is not None,
        ROWS=max(power_of_2(Hq // Hkv), 16), WIDTH=width, **products(q.dtype), num_warps=4,
        num_stages=min(max(stages, 1), 3),
    )  # fmt: skip
    if splits > 1:
        launch(
            join_kernel, (B * Hq,), partial, log_sum, out, D, SPLITS=splits, BLOCK=power_of_2(splits), WIDTH=width,
            num_warps=4,
        )  # fmt: skip
    return out


def products(dtype: torch.dtype) -> dict[str, int | str]:
    """Constants of the products of a kernel for queries of `dtype`. Float32 goes through the matrix units as three
    products of tf32: without them it does not fit into registers."""
    if dtype == torch.float32:
        return {"KEYS": KEYS_FLOAT32, "DOT": "tf32x3"}
    return {"KEYS": KEYS, "DOT": "ieee"}


def splits_of(rows: int, most_keys: int, device: torch.device) -> int:
    """Shares of each sequence: about four programs a multiprocessor, none with fewer than KEYS keys of the longest."""
    wanted = -(-4 * _multiprocessors(device) // rows)
    return max(1, min(wanted, most_keys // KEYS, MOST_SPLITS))


@cache
def _multiprocessors(device: torch.device) -> int:
    return 4 if INTERPRETED else torch.cuda.get_device_properties(device).multi_processor_count


def takes(q, key_pages, value_pages, page_table, counts, key_scale, value_scale) -> bool:
    """Whether the kernels can: types, pages with dense heads and the same strides, sizes."""
    if not fits(q, key_scale, value_scale) or not q.numel() or not key_pages.numel():
        return False
    pages, heads = (key_pages, value_pages), q.shape[1] // key_pages.shape[2]
    types = key_pages.dtype == value_pages.dtype and (key_pages.dtype in TYPES or _reads_e4m3(key_pages))
    layout = key_pages.stride() == value_pages.stride() and key_pages.stride(3) == 1
    layout = layout and key_pages.shape == value_pages.shape and key_pages.shape[3] == q.shape[2]
    here = all(t.device == q.device for t in (*pages, page_table, counts))
    integers = {page_table.dtype, counts.dtype} <= {torch.int32, torch.int64}
    small = q.dtype != torch.float32 or power_of_2(max(heads, 16)) * power_of_2(max(q.shape[2], 16)) <= MOST_FLOAT32
    return types and layout and here and integers and small and heads <= MOST_HEADS and q.shape[2] <= WIDEST


def _reads_e4m3(pages: Tensor) -> bool:
    """Whether they are e4m3 and the device converts that type."""
    return pages.dtype == E4M3 and (INTERPRETED or torch.cuda.get_device_capability(pages.device) >= (8, 9))


def _case(g: torch.Generator, dtype: torch.dtype) -> tuple:
    pages = (normal(g, dtype, 40, 8, 2, 24) for _ in range(2))
    table = torch.arange(39, -1, -1, device="cpu").view(2, 20)
    return normal(g, dtype, 2, 6, 24), *pages, table, torch.tensor([150, 9], device="cpu")


KERNELS = {"paged_decode": Kernel(guarded(paged_decode, EAGER["paged_decode"]), "heads up to 256 wide", _case)}
