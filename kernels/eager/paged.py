"""Attention over pages: sequences with one query in padded groups, longer ones alone, keys a block at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..common import accumulator, matmul_dtype
from .attention import Partial, attend_partly, merge

BLOCK_KEYS = 1 << 15
"""Most keys of one sequence brought together at a time."""
GROUP_KEYS = 1 << 17
"""Most keys, padding included, of one group of sequences."""


def paged_attention(
    q: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
) -> Tensor:
    """See nano3.kernels.paged_attention."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    single: list[tuple[int, int]] = []  # (row, query position)
    start = 0
    for row, (queries, keys) in enumerate(zip(query_lengths, key_lengths, strict=True)):
        if queries == 1 and keys <= BLOCK_KEYS:
            single.append((row, start))
        elif queries:
            part = slice(start, start + queries)
            pages = _Pages(key_pages, value_pages, page_table[row], q.dtype)
            out[part] = _one_sequence(q[part], pages, keys)
        start += queries
    for group in _groups(single, key_lengths):
        _decode_group(out, q, key_pages, value_pages, page_table, group, key_lengths)
    return out


class _Pages:
    """Keys and values of one sequence."""

    def __init__(self, key_pages: Tensor, value_pages: Tensor, table: Tensor, dtype: torch.dtype) -> None:
        self.keys, self.values, self.table, self.dtype = key_pages, value_pages, table, dtype

    def block(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """(1, stop - start, Hkv, Dh) of positions start..stop, in `dtype`."""
        size, skipped = self.keys.shape[1], start % self.keys.shape[1]
        pages = self.table[start // size : -(-stop // size)]
        count, first = pages.numel(), int(pages[0])
        if int(pages[-1]) == first + count - 1 and bool((pages[1:] == pages[:-1] + 1).all()):
            parts = [m[first : first + count] for m in (self.keys, self.values)]
        else:
            parts = [m[pages] for m in (self.keys, self.values)]
        k, v = (part.flatten(0, 1)[skipped : skipped + stop - start].unsqueeze(0).to(self.dtype) for part in parts)
        return k, v


def _one_sequence(q: Tensor, pages: _Pages, keys: int) -> Tensor:
    """q (T, Hq, Dh) at the last T of `keys` positions -> (T, Hq, Dh)."""
    past = keys - q.shape[0]
    result: Partial | None = None
    for start in range(0, past, BLOCK_KEYS):
        stop = min(start + BLOCK_KEYS, past)
        result = merge(result, attend_partly(q.unsqueeze(0), *pages.block(start, stop), causal=False))
    result = merge(result, attend_partly(q.unsqueeze(0), *pages.block(past, keys), causal=True))
    return result.out[0].to(q.dtype)


def _groups(single: list[tuple[int, int]], key_lengths: Sequence[int]) -> Iterator[list[tuple[int, int]]]:
    """Sequences with one query, of similar length together: padding at most doubles the keys read."""
    group: list[tuple[int, int]] = []
    for item in sorted(single, key=lambda item: -key_lengths[item[0]]):
        keys = key_lengths[group[0][0]] if group else 0
        if group and (key_lengths[item[0]] * 2 < keys - 64 or (len(group) + 1) * keys > GROUP_KEYS):
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def _decode_group(out, q, key_pages, value_pages, page_table, group, key_lengths) -> None:
    device, size, kv_heads = q.device, key_pages.shape[1], key_pages.shape[2]
    lengths = [key_lengths[row] for row, _ in group]
    most = max(lengths)
    rows = torch.tensor([row for row, _ in group], device=device)
    positions = torch.tensor([position for _, position in group], device=device)
    pages = page_table[rows, : -(-most // size)]
    k, v = (m[pages].flatten(1, 2)[:, :most].transpose(1, 2) for m in (key_pages, value_pages))  # (n, Hkv, S, Dh)
    product = matmul_dtype(q.dtype, device)
    grouped = q[positions].unflatten(1, (kv_heads, -1)).to(product)  # (n, Hkv, Hq/Hkv, Dh)
    scores = (grouped @ k.to(product).transpose(2, 3)).to(accumulator(q.dtype)).mul_(q.shape[-1] ** -0.5)
    if min(lengths) < most:
        outside = torch.arange(most, device=device) >= torch.tensor(lengths, device=device).unsqueeze(1)
        scores.masked_fill_(outside[:, None, None], float("-inf"))
        v = v.to(product).masked_fill(outside[:, None, :, None], 0)  # pages hold whatever was there: 0 * nan is nan
    values = scores.softmax(-1).to(product) @ v.to(product)
    out[positions] = values.flatten(1, 2).to(out.dtype)


def paged_decode(
    q: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    counts: Tensor,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> Tensor:
    """See nano3.kernels.paged_decode; no host synchronisation on other devices than CPUs."""
    if q.device.type == "cpu" and counts.numel():
        page_table = page_table[:, : max(1, -(-int(counts.max()) // key_pages.shape[1]))]
    return decode_table(q, key_pages, value_pages, page_table, counts, key_scale, value_scale)


def decode_table(
    q: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    counts: Tensor,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
) -> Tensor:
    """`paged_decode` over all columns of the table, on any device without host synchronisation."""
    size, wide = key_pages.shape[1], accumulator(q.dtype)
    lengths = counts.unsqueeze(1)
    used = torch.arange(page_table.shape[1], device=q.device) * size < lengths
    pages = page_table.masked_fill(~used, 0)  # what lies behind a sequence's last page may be no page
    k, v = (m[pages].flatten(1, 2).transpose(1, 2) for m in (key_pages, value_pages))  # (B, Hkv, S, Dh)
    product = matmul_dtype(q.dtype, q.device)
    grouped = q.unflatten(1, (key_pages.shape[2], -1)).to(product)  # (B, Hkv, Hq/Hkv, Dh)
    scores = (grouped @ k.to(product).transpose(2, 3)).to(wide).mul_(q.shape[-1] ** -0.5)
    if key_scale is not None:
        scores.mul_(key_scale)
    outside = torch.arange(k.shape[2], device=q.device) >= lengths
    scores.masked_fill_(outside[:, None, None], float("-inf"))
    v = v.to(product).masked_fill(outside[:, None, :, None], 0)  # pages hold whatever was there: 0 * nan is nan
    values = scores.softmax(-1).to(product) @ v
    if value_scale is not None:
        values = values.to(wide) * value_scale
    return values.flatten(1, 2).masked_fill_((lengths == 0).unsqueeze(2), 0).to(q.dtype)
