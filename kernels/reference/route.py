"""Sigmoid router with a selection bias (report section 2.1; aux-loss-free balancing, arXiv 2408.15664)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..common import accumulator


def route(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """See nano3.kernels.route."""
    wide = accumulator(x.dtype)
    scores = torch.sigmoid(x.to(wide) @ weight.to(wide).T)  # (S, E)
    order = (scores.detach() + bias.detach()).sort(dim=-1, descending=True, stable=True).indices
    expert_ids = order[:, :top_k].contiguous()
    chosen = scores.gather(1, expert_ids)
    return expert_ids, chosen / (chosen.sum(-1, keepdim=True) + 1e-20) * scale, scores
