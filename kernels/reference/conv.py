"""Causal depthwise convolution over time followed by SiLU (Mamba-2's short convolution)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common import accumulator, segments


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    initial_state: Tensor | None = None,
    document_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See nano3.kernels.causal_conv1d."""
    batch, T, channels = x.shape
    width = weight.shape[1]
    wide = accumulator(x.dtype)
    past = x.new_zeros(batch, width - 1, channels) if initial_state is None else initial_state.transpose(1, 2).to(x)
    padded = torch.cat([past, x], dim=1)  # input t sits at row t + width - 1
    segment = torch.zeros(batch, T, dtype=torch.int64, device=x.device)
    if document_ids is not None:
        segment = segments(document_ids)
    padded_segment = F.pad(segment, (width - 1, 0))  # the state belongs to the first document, number 0
    total = bias.to(wide).expand(batch, T, channels)
    for tap in range(width):
        same_document = (padded_segment[:, tap : tap + T] == segment).unsqueeze(-1)
        total = total + weight[:, tap].to(wide) * (padded[:, tap : tap + T].to(wide) * same_document)
    keep = padded_segment[:, T:] == padded_segment[:, -1:]
    final_state = (padded[:, T:] * keep.unsqueeze(-1)).transpose(1, 2)
    return F.silu(total).to(x.dtype), final_state


def causal_conv1d_step(x: Tensor, state: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """See nano3.kernels.causal_conv1d_step."""
    wide = accumulator(x.dtype)
    window = torch.cat([state, x.to(state.dtype).unsqueeze(-1)], dim=-1)  # (B, C, W)
    state.copy_(window[..., 1:])
    return F.silu((window.to(wide) * weight.to(wide)).sum(-1) + bias.to(wide)).to(x.dtype)
