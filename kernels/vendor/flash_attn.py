"""flash-attn's kernels (arXiv 2307.08691): attention of rows, of packed documents and over pages of 256 tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

from .. import eager
from ..eager.varlen import bounds
from .package import Functions, load, where

WIDEST_HEAD = 256
PAGE_MULTIPLE = 256
"""Its kernels read pages of a multiple of this many tokens."""


def _imports() -> dict[str, Callable]:
    module = import_module("flash_attn")
    names = ("flash_attn_func", "flash_attn_varlen_func", "flash_attn_with_kvcache")
    return {name: getattr(module, name) for name in names}


@cache
def package() -> Functions:
    """What can be imported of flash-attn."""
    return load("flash-attn", _imports)


def unavailable(device: torch.device, _op: str) -> str | None:
    """Why flash-attn's kernels cannot run on `device`, None when they can."""
    return package().problem if device.type == "cuda" else "flash-attn's kernels run on CUDA devices"


def about(op: str) -> str:
    """What runs, in a few words."""
    return f"flash-attn's {'flash_attn_func' if op == 'attention' else 'flash_attn_with_kvcache'}"


def attention(q: Tensor, k: Tensor, v: Tensor, *, document_ids: Tensor | None = None) -> Tensor:
    """See nano3.kernels.attention."""
    if document_ids is None:
        return package().by_name["flash_attn_func"](q, k, v, causal=True)
    ends, longest = bounds(document_ids)
    packed = (m.flatten(0, 1) for m in (q, k, v))
    y = package().by_name["flash_attn_varlen_func"](*packed, ends, ends, longest, longest, causal=True)
    return y.view(q.shape)


def _suits(q: Tensor, k: Tensor, v: Tensor, *, document_ids: Tensor | None = None) -> bool:
    return _half(q, k, v) and (document_ids is None or k.shape[1] == q.shape[1])


def _half(q: Tensor, k: Tensor, v: Tensor) -> bool:
    same = q.dtype == k.dtype == v.dtype and q.dtype in (torch.float16, torch.bfloat16)
    return same and q.numel() > 0 and q.shape[-1] % 8 == 0 and q.shape[-1] <= WIDEST_HEAD


def paged_attention(
    q: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
) -> Tensor:
    """See nano3.kernels.paged_attention; all sequences have as many queries."""
    counts = torch.tensor(key_lengths, dtype=torch.int32).to(q.device, non_blocking=True)
    y = package().by_name["flash_attn_with_kvcache"](
        q.unflatten(0, (len(query_lengths), query_lengths[0])), key_pages, value_pages, cache_seqlens=counts,
        block_table=page_table.int(), causal=True,
    )  # fmt: skip
    return y.flatten(0, 1)


def _suits_pages(
    q: Tensor, key_pages: Tensor, value_pages: Tensor, _page_table: Tensor, query_lengths: Sequence[int], *_: object
) -> bool:
    whole = key_pages.shape[1] % PAGE_MULTIPLE == 0
    return whole and len(set(query_lengths)) == 1 and _half(q, key_pages, value_pages)


FUNCTIONS: dict[str, Callable] = {
    "attention": where(_suits, attention, eager.FUNCTIONS["attention"]),
    "paged_attention": where(_suits_pages, paged_attention, eager.FUNCTIONS["paged_attention"]),
}
