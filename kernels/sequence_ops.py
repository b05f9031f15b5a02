"""The public ops that mix the tokens of a sequence: convolution, scan, attention. As in ops.py.

`document_ids` (B, T) marks documents packed in a row: one starts at t = 0 and wherever the id differs from the one
before; nothing passes from one document into the next.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .dispatch import choose


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    initial_state: Tensor | None = None,
    document_ids: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """silu(bias + sum_w weight[:, w] * x[t - (W - 1) + w]): depthwise convolution over the past (arXiv 2405.21060).

    Args:
        x: (B, T, C).
        weight: (C, W).
        bias: (C,).
        initial_state: (B, C, W-1) inputs before t = 0, oldest first, part of the row's first document; None: zeros.
        document_ids: (B, T); taps that reach into an earlier document read zero.

    Returns:
        output (B, T, C) and final state (B, C, W-1), both in x.dtype: the last W-1 inputs, zero where they belong to
        an earlier document than the last token's.
    """
    _check_documents("causal_conv1d", document_ids, x)
    run = choose("causal_conv1d", x.device, backend)[1]
    return run(x, weight, bias, initial_state=initial_state, document_ids=document_ids)


def causal_conv1d_step(x: Tensor, state: Tensor, weight: Tensor, bias: Tensor, *, backend: str | None = None) -> Tensor:
    """One token of `causal_conv1d`, for decoding (no gradient).

    Args:
        x: (B, C).
        state: (B, C, W-1), updated in place.
        weight: (C, W).
        bias: (C,).

    Returns:
        (B, C) in x.dtype.
    """
    return choose("causal_conv1d_step", x.device, backend)[1](x, state, weight, bias)


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    *,
    initial_state: Tensor | None = None,
    document_ids: Tensor | None = None,
    chunk_size: int = 128,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Mamba-2's selective state-space scan (SSD, arXiv 2405.21060; report section 2.1), for each head:

        step_t = softplus(dt_t + dt_bias)
        S_t    = exp(step_t A) S_{t-1} + step_t x_t B_t^T        (S is zeroed where a document starts)
        y_t    = S_t C_t + D x_t

    Differentiable in all arguments of floating type; time and memory grow linearly with T.

    Args:
        x: (B, T, H, P).
        dt: (B, T, H) raw steps.
        A: (H,) negative.
        B, C: (B, T, G, N); head h uses group h // (H / G).
        D, dt_bias: (H,).
        initial_state: (B, H, P, N) fp32, continued by the row's first document; None: zeros.
        document_ids: (B, T).
        chunk_size: most tokens handled by one dense product; changes speed and rounding, not the function.

    Returns:
        y (B, T, H, P) in x.dtype and the final state (B, H, P, N) in fp32 (fp64 for fp64 x).

    Raises:
        ValueError: H is not a multiple of G, chunk_size is below 1, or document_ids has another shape than (B, T).
    """
    _check_documents("ssd_scan", document_ids, x)
    _check_groups("ssd_scan", x.shape[2], B.shape[2])
    if chunk_size < 1:
        raise ValueError(f"ssd_scan: chunk_size is {chunk_size}; it must be at least 1")
    run = choose("ssd_scan", x.device, backend)[1]
    options = {"initial_state": initial_state, "document_ids": document_ids, "chunk_size": chunk_size}
    return run(x, dt, A, B, C, D, dt_bias, **options)


def ssd_step(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    *,
    backend: str | None = None,
) -> Tensor:
    """One token of `ssd_scan`, for decoding (no gradient).

    Args:
        state: (B, H, P, N) fp32, updated in place.
        x: (B, H, P).
        dt: (B, H) raw.
        A, D, dt_bias: (H,).
        B, C: (B, G, N).

    Returns:
        y (B, H, P) in x.dtype.
    """
    return choose("ssd_step", x.device, backend)[1](state, x, dt, A, B, C, D, dt_bias)


def mamba_step(
    xBC: Tensor,
    dt: Tensor,
    z: Tensor,
    conv_state: Tensor,
    ssm_state: Tensor,
    slots: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    norm_weight: Tensor,
    eps: float,
    n_groups: int,
    *,
    backend: str | None = None,
) -> Tensor:
    """One token of several sequences through conv, scan and gated norm, for decoding (no gradient): what
    `causal_conv1d_step`, `ssd_step` and `gated_rms_norm` do one after another, on states where they lie.

    Args:
        xBC: (B, C), C = H P + 2 G N: inputs of the convolution.
        dt: (B, H) raw.
        z: (B, H P) gate of the norm.
        conv_state: (slots, C, W-1), ssm_state: (slots, H, P, N) fp32; the rows `slots` are updated in place.
        slots: (B,) int64, all different; an IndexError where one does not exist, nan in the backend triton. Or -1, any
            number of times but in the backend mamba-ssm: rows of padding, which advance nothing and give zeros.
        conv_weight: (C, W); conv_bias: (C,).
        A_log, D, dt_bias: (H,); A = -exp(A_log).
        norm_weight: (H P,).

    Returns:
        (B, H P) in z.dtype.
    """
    run = choose("mamba_step", xBC.device, backend)[1]
    weights = (conv_weight, conv_bias, A_log, D, dt_bias, norm_weight)
    return run(xBC, dt, z, conv_state, ssm_state, slots, *weights, eps, n_groups)


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, document_ids: Tensor | None = None, backend: str | None = None
) -> Tensor:
    """Causal softmax(q k^T / sqrt(Dh)) v with grouped heads and no positions (arXiv 2305.13245; report section 2.1).

    Args:
        q: (B, T, Hq, Dh): the last T of S positions.
        k, v: (B, S, Hkv, Dh), S >= T; query head h reads key head h // (Hq / Hkv).
        document_ids: (B, S): documents of all positions, the last T being those of the queries too. Keys in front that
            no query sees cost no time.

    Returns:
        (B, T, Hq, Dh) in q.dtype.

    Raises:
        ValueError: S < T, document_ids of another shape, or Hq is not a multiple of Hkv.
    """
    T, S = q.shape[1], k.shape[1]
    if S < T:
        raise ValueError(f"attention: {T} queries for only {S} keys; keys must cover the queries' own positions")
    _check_documents("attention", document_ids, k)
    _check_groups("attention", q.shape[2], k.shape[2])
    return choose("attention", q.device, backend)[1](q, k, v, document_ids=document_ids)


def paged_attention(
    q: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
    *,
    backend: str | None = None,
) -> Tensor:
    """`attention` of several sequences whose keys and values lie in pages (arXiv 2309.06180); no gradient.

    Args:
        q: (S, Hq, Dh): the queries of all sequences, one sequence after another.
        key_pages, value_pages: (number of pages, page size, Hkv, Dh), cast to q.dtype where they have another type.
        page_table: (n, most pages) int64: the pages of each sequence in order; what lies behind its last is not read.
        query_lengths: queries of each of the n sequences, at its last positions.
        key_lengths: positions of each sequence, the queries' own included.

    Returns:
        (S, Hq, Dh) in q.dtype.

    Raises:
        ValueError: the lengths do not fit q, the table, or each other.
    """
    if sum(query_lengths) != q.shape[0] or len(query_lengths) != len(key_lengths):
        raise ValueError(f"paged_attention: {q.shape[0]} queries, but query_lengths add up to {sum(query_lengths)}")
    if any(keys < queries for queries, keys in zip(query_lengths, key_lengths, strict=True)):
        raise ValueError("paged_attention: a sequence has more queries than keys")
    if max(key_lengths, default=0) > page_table.shape[1] * key_pages.shape[1]:
        raise ValueError(f"paged_attention: the page table has no room for {max(key_lengths)} keys")
    _check_groups("paged_attention", q.shape[1], key_pages.shape[2])
    run = choose("paged_attention", q.device, backend)[1]
    return run(q, key_pages, value_pages, page_table, query_lengths, key_lengths)


def paged_decode(
    q: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    counts: Tensor,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """`paged_attention` of one query a sequence, with all lengths in tensors, so that a CUDA graph can read them; no
    gradient. On CUDA nothing waits for the device.

    Args:
        q: (B, Hq, Dh): the query of each sequence, at its last position.
        key_pages, value_pages: (number of pages, page size, Hkv, Dh), cast to q.dtype where they have another type.
        page_table: (B, most pages) int32 or int64: the pages of each sequence in order; what lies behind its last is
            not read.
        counts: (B,) int32 or int64: positions of each sequence, the query's own included, at most what its row of the
            table has room for (not checked); 0: a row of padding.
        key_scale, value_scale: () fp32: keys and values are the pages' numbers times these (e4m3 pages); None: 1.

    Returns:
        (B, Hq, Dh) in q.dtype, zeros where the count is 0.

    Raises:
        ValueError: shapes that do not go together, or tables and counts that are no integers.
    """
    rows = q.shape[:1]
    if page_table.dim() != 2 or page_table.shape[:1] != rows or counts.shape != rows:
        shapes = f"q {tuple(q.shape)}, page_table {tuple(page_table.shape)}, counts {tuple(counts.shape)}"
        raise ValueError(f"paged_decode: {shapes}; they need one row a sequence")
    if key_pages.shape != value_pages.shape or key_pages.shape[3:] != q.shape[2:]:
        shapes = f"key_pages {tuple(key_pages.shape)}, value_pages {tuple(value_pages.shape)}"
        raise ValueError(f"paged_decode: {shapes} for q {tuple(q.shape)}")
    if not {page_table.dtype, counts.dtype} <= {torch.int32, torch.int64}:
        raise ValueError(f"paged_decode: page_table of {page_table.dtype} and counts of {counts.dtype}; they must be "
                         "int32 or int64")  # fmt: skip
    _check_groups("paged_decode", q.shape[1], key_pages.shape[2])
    run = choose("paged_decode", q.device, backend)[1]
    return run(q, key_pages, value_pages, page_table, counts, key_scale, value_scale)


def _check_documents(op: str, document_ids: Tensor | None, x: Tensor) -> None:
    if document_ids is not None and document_ids.shape != x.shape[:2]:
        shape, expected = tuple(document_ids.shape), tuple(x.shape[:2])
        positions = "keys" if op == "attention" else "T"
        raise ValueError(f"{op}: document_ids has shape {shape}; it must be (B, {positions}) = {expected}")


def _check_groups(op: str, heads: int, groups: int) -> None:
    if heads % groups:
        raise ValueError(f"{op}: {heads} heads are not divisible by {groups} groups")
