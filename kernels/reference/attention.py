"""Causal grouped-query attention (arXiv 2305.13245) without positions (report section 2.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..common import accumulator, segments


def attention(q: Tensor, k: Tensor, v: Tensor, *, document_ids: Tensor | None = None) -> Tensor:
    """See nano3.kernels.attention."""
    T, S = q.shape[1], k.shape[1]
    wide = accumulator(q.dtype)
    heads_per_group = q.shape[2] // k.shape[2]
    k, v = (m.to(wide).repeat_interleave(heads_per_group, dim=2) for m in (k, v))
    scores = torch.einsum("bthd,bshd->bhts", q.to(wide), k) / q.shape[-1] ** 0.5
    allowed = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    if document_ids is not None:
        segment = segments(document_ids)
        allowed = allowed & (segment[:, None, S - T :, None] == segment[:, None, None, :])
    probabilities = scores.masked_fill(~allowed, float("-inf")).softmax(-1)
    return torch.einsum("bhts,bshd->bthd", probabilities, v).to(q.dtype)
