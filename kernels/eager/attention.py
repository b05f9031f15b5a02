"""Causal grouped-query attention on PyTorch's fused kernel, with memory linear in the row's length."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.backends import cuda

from ..common import accumulator, matmul_dtype, segments
from ..host_copies import known
from . import varlen

aten = torch.ops.aten

LONGEST_MASKED = 256
"""Longest piece that gets a dense mask; longer documents run alone, without one."""
MASK_ELEMENTS = 1 << 22
"""Most elements of the mask of one block of queries behind cached keys."""


def attention(q: Tensor, k: Tensor, v: Tensor, *, document_ids: Tensor | None = None) -> Tensor:
    """See nano3.kernels.attention."""
    T, S = q.shape[1], k.shape[1]
    if document_ids is not None and S == T:
        if varlen.suits(q, k, v):
            return varlen.attend_packed(q, k, v, document_ids)
        return _attend_documents(q, k, v, *_segments(document_ids))
    if document_ids is not None:
        return _attend_behind_documents(q, k, v, document_ids)
    if S == T:
        return _attend(q, k, v, causal=True)
    return _attend_behind_cache(q, k, v)


def _attend(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    heads_first = [m.transpose(1, 2) for m in (q, k, v)]
    if matmul_dtype(q.dtype, q.device) != q.dtype and q.numel():
        out = _WideAttention.apply(*heads_first, mask, causal)
    else:
        gqa = q.shape[2] != k.shape[2]
        out = F.scaled_dot_product_attention(*heads_first, attn_mask=mask, is_causal=causal, enable_gqa=gqa)
    return out.transpose(1, 2)


class _WideAttention(torch.autograd.Function):
    """CPU attention computed in float32 that keeps queries, keys, values and outputs in the dtype they came in.

    They are kept with `save_for_backward`, so that activation checkpointing can let go of them.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        bias = _as_bias(mask)
        wide = (_widen(m) for m in (q, k, v))
        out, log_sums = aten._scaled_dot_product_flash_attention_for_cpu(*wide, 0.0, causal, attn_mask=bias)
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, log_sums, mask)
        ctx.causal = causal
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor):
        *narrow, log_sums, mask = ctx.saved_tensors
        wide = (_widen(m) for m in (dout, *narrow))
        grads = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *wide, log_sums, 0.0, ctx.causal, attn_mask=_as_bias(mask)
        )
        return *(grad.to(dout.dtype) for grad in grads), None, None


def _widen(m: Tensor) -> Tensor:
    """float32, its last dimension dense: the fused kernel takes that for granted."""
    m = m.float()
    return m if m.stride(-1) == 1 else m.contiguous()


def _as_bias(mask: Tensor | None) -> Tensor | None:
    """True where attention is allowed -> what to add to the scores."""
    if mask is None:
        return None
    return torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, -torch.inf)


def _attend_behind_cache(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Queries at the last T of S positions, without a mask of T x S where the device allows."""
    T, S = q.shape[1], k.shape[1]
    if T == 1:
        return _attend(q, k, v)
    if q.device.type == "cpu":
        return _BehindCache.apply(q, k, v)
    if (out := _attend_lower_right(q, k, v)) is not None:
        return out
    outputs, rows = [], max(1, MASK_ELEMENTS // S)
    for start in range(0, T, rows):
        stop = min(start + rows, T)
        keys = S - T + stop
        mask = torch.ones(stop - start, keys, dtype=torch.bool, device=q.device).tril(S - T + start)
        outputs.append(_attend(q[:, start:stop], k[:, :keys], v[:, :keys], mask=mask))
    return torch.cat(outputs, dim=1)


class _BehindCache(torch.autograd.Function):
    """Attention on a CPU to the past without a mask and to the rest causally, merged.

    The fused kernel's backward pass makes each part's probabilities from the sum over all keys, and so each part's
    share of the whole gradient.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        past = k.shape[1] - q.shape[1]
        result = attend_partly(q, k[:, :past], v[:, :past], causal=False)
        result = merge(result, attend_partly(q, k[:, past:], v[:, past:], causal=True))
        out = result.out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, result.log_sum)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor):
        q, k, v, out, log_sums = ctx.saved_tensors
        wide, past = accumulator(q.dtype), k.shape[1] - q.shape[1]
        dout, q_first, out = (_dense(m.transpose(1, 2), wide) for m in (dout, q, out))
        dq, dk, dv = 0, torch.empty_like(k), torch.empty_like(v)
        for part, causal in ((slice(0, past), False), (slice(past, None), True)):
            keys, values = (_dense(m[:, part].transpose(1, 2), wide) for m in (k, v))
            grads = aten._scaled_dot_product_flash_attention_for_cpu_backward(
                dout, q_first, keys, values, out, log_sums.transpose(1, 2), 0.0, causal
            )
            dq = dq + grads[0].transpose(1, 2).to(wide)
            dk[:, part], dv[:, part] = (grad.transpose(1, 2) for grad in grads[1:])
        return dq.to(q.dtype), dk, dv


def _attend_lower_right(q: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
    """On PyTorch's fused CUDA kernels, which know queries at the end of the keys; None where none of them can."""
    from torch.nn.attention.bias import causal_lower_right  # slow to import

    if (
        q.element_size() > 2 and q.shape[2] != k.shape[2]
    ):  # only flash attention, of half precision, has groups of heads
        k, v = (m.repeat_interleave(q.shape[2] // k.shape[2], dim=2) for m in (k, v))
    gqa = q.shape[2] != k.shape[2]
    q_first, k_first, v_first = (m.transpose(1, 2) for m in (q, k, v))
    params = cuda.SDPAParams(q_first, k_first, v_first, None, 0.0, False, gqa)
    if not (cuda.can_use_flash_attention(params) or cuda.can_use_efficient_attention(params)):
        return None
    bias = causal_lower_right(q.shape[1], k.shape[1])
    out = F.scaled_dot_product_attention(q_first, k_first, v_first, attn_mask=bias, enable_gqa=gqa)
    return out.transpose(1, 2)


class Partial(NamedTuple):
    """Attention to some of the keys, to be merged with attention to others."""

    out: Tensor
    """(B, T, Hq, Dh), in the accumulator's type."""
    log_sum: Tensor
    """(B, T, Hq) log of the sum of exponentiated scores."""


def attend_partly(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Partial:
    """Attention of q (B, T, Hq, Dh) to a part (B, S, Hkv, Dh) of the keys; no gradient.

    With `causal` the queries are the last T of these S positions (so S >= T); else they see all of them.
    """
    T, S, wide = q.shape[1], k.shape[1], accumulator(q.dtype)
    if q.device.type == "cpu" and (not causal or S == T):
        heads_first = (_dense(m.transpose(1, 2), wide) for m in (q, k, v))
        out, log_sum = aten._scaled_dot_product_flash_attention_for_cpu(*heads_first, 0.0, causal)
        return Partial(out.transpose(1, 2).to(wide), log_sum.transpose(1, 2).to(wide))
    return _attend_densely(q, k, v, causal)


def _attend_densely(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Partial:
    """With all scores of some queries at a time."""
    (B, T, Hq, _), S, Hkv = q.shape, k.shape[1], k.shape[2]
    wide = accumulator(q.dtype)
    keys, values = (m.transpose(1, 2).to(wide) for m in (k, v))  # (B, Hkv, S, Dh)
    out, log_sum = q.new_empty(q.shape, dtype=wide), q.new_empty(q.shape[:3], dtype=wide)
    rows = max(1, MASK_ELEMENTS // (S * Hq))
    for start in range(0, T, rows):
        stop = min(start + rows, T)
        grouped = q[:, start:stop].to(wide).transpose(1, 2).reshape(B, Hkv, -1, q.shape[3])
        scores = (grouped @ keys.transpose(2, 3)).mul_(q.shape[3] ** -0.5).view(B, Hq, stop - start, S)
        if causal:
            allowed = torch.ones(stop - start, S, dtype=torch.bool, device=q.device).tril(S - T + start)
            scores.masked_fill_(~allowed, -torch.inf)
        log_sum[:, start:stop] = scores.logsumexp(-1).transpose(1, 2)
        probabilities = scores.softmax(-1).view(B, Hkv, -1, S)
        out[:, start:stop] = (probabilities @ values).view(B, Hq, stop - start, -1).transpose(1, 2)
    return Partial(out, log_sum)


def merge(first: Partial | None, second: Partial) -> Partial:
    """Attention to the keys of both parts (arXiv 2112.05682)."""
    if first is None:
        return second
    log_sum = torch.logaddexp(first.log_sum, second.log_sum)
    shares = [(part.log_sum - log_sum).exp_().unsqueeze(-1) for part in (first, second)]
    return Partial(first.out * shares[0] + second.out * shares[1], log_sum)


def _dense(m: Tensor, wide: torch.dtype) -> Tensor:
    """In `wide` where the device has no fast product of its own type, and its last dimension dense."""
    m = m.to(wide) if matmul_dtype(m.dtype, m.device) != m.dtype else m
    return m if m.stride(-1) == 1 else m.contiguous()


class _Piece(NamedTuple):
    """Tokens start..stop of a row: one document, or several short ones."""

    start: int
    stop: int
    several: bool


def _segments(document_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Running document numbers, and the same where the host can look at them, if anywhere without waiting."""
    segment, host = segments(document_ids), known(document_ids)
    return segment, segment if host is None or host is document_ids else segments(host)


def _attend_documents(q: Tensor, k: Tensor, v: Tensor, segment: Tensor, seen: Tensor) -> Tensor:
    """`seen`: the segments where the host can look at them, if anywhere without waiting for the device."""
    if not seen[:, -1].any():
        return _attend(q, k, v, causal=True)
    if q.shape[1] <= LONGEST_MASKED:
        return _attend(q, k, v, mask=_same_document(segment).unsqueeze(1))
    rows = []
    for row in range(q.shape[0]):
        pieces = [_attend_piece(q, k, v, segment, row, piece) for piece in _pieces(seen[row])]
        rows.append(torch.cat(pieces, dim=1))
    return torch.cat(rows)


def _attend_behind_documents(q: Tensor, k: Tensor, v: Tensor, document_ids: Tensor) -> Tensor:
    """Queries at the last T of S positions, of documents (B, S): those of the document that began before them against
    all its keys, the others among themselves."""
    T, S = q.shape[1], k.shape[1]
    if T == 0:
        return torch.empty_like(q)
    segment, seen = _segments(document_ids)
    own = seen[:, S - T : S - T + 1]  # (B, 1) the first query's document
    bounds = torch.stack([(seen < own).sum(1), (seen <= own).sum(1)], dim=1)
    rows = []
    for row, (begin, end) in enumerate(bounds.tolist()):
        one, first, rest = slice(row, row + 1), slice(0, end - (S - T)), slice(end - (S - T), T)
        parts = [attention(q[one, first], k[one, begin:end], v[one, begin:end])]
        if end < S:
            own_ids = (ids[one, end:] - ids[row, end] for ids in (segment, seen))
            parts.append(_attend_documents(q[one, rest], k[one, end:], v[one, end:], *own_ids))
        rows.append(torch.cat(parts, dim=1))
    return torch.cat(rows)


def _attend_piece(q: Tensor, k: Tensor, v: Tensor, segment: Tensor, row: int, piece: _Piece) -> Tensor:
    part = (slice(row, row + 1), slice(piece.start, piece.stop))
    if not piece.several:
        return _attend(q[part], k[part], v[part], causal=True)
    return _attend(q[part], k[part], v[part], mask=_same_document(segment[part]).unsqueeze(1))


def _same_document(segment: Tensor) -> Tensor:
    """(B, T) -> (B, T, T) causal mask within documents."""
    return (segment.unsqueeze(2) == segment.unsqueeze(1)).tril_()


def _pieces(segment: Tensor) -> list[_Piece]:
    """Documents of one row, neighbours joined while together they are short."""
    lengths = torch.bincount(segment).tolist()
    pieces: list[_Piece] = []
    start = 0
    for length in lengths:
        stop = start + length
        if pieces and stop - pieces[-1].start <= LONGEST_MASKED:
            pieces[-1] = _Piece(pieces[-1].start, stop, True)
        else:
            pieces.append(_Piece(start, stop, False))
        start = stop
    return pieces
