"""Log-probabilities from the output projection, without ever holding all logits.

A plain projection goes through one fused op; any other module (an adapter, a quantized or a hooked one) is called, a
few tokens at a time, and its logits are made again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nano3 import kernels
from nano3.model.layers import bare_weight

IGNORED = -100
"""Target of a token that has none."""
CHUNK = 256
"""Tokens whose logits a called head makes at a time: 134 MB in float32 at the report's vocabulary of 131,072."""


def nll_sum(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """Sum of -log softmax(head(hidden))[target], a differentiable float32 scalar (float64 for float64 hidden).

    Args:
        head: (..., D) -> (..., V).
        hidden: (..., D).
        targets: as `hidden` without D, int64; -100 counts nothing.
    """
    hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.flatten()
    if isinstance(weight := bare_weight(head), Tensor):
        return kernels.linear_cross_entropy(hidden, weight, targets)
    kept = targets != IGNORED
    return -torch.cat(list(_called(head, hidden[kept], targets[kept]))).sum()


@torch.no_grad()
def token_log_probs(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """log softmax(head(hidden))[target] of each token, float32, without gradients.

    Args:
        head: (..., D) -> (..., V).
        hidden: (..., D).
        targets: as `hidden` without D, int64.
    """
    rows, flat = hidden.reshape(-1, hidden.shape[-1]), targets.flatten()
    if isinstance(weight := bare_weight(head), Tensor):
        return kernels.token_log_probs(rows, weight, flat).view_as(targets)
    return torch.cat(list(_called(head, rows, flat))).view_as(targets)


def _called(head: nn.Module, hidden: Tensor, targets: Tensor) -> Iterator[Tensor]:
    """Of (S, D) and (S,): log-probabilities of one chunk after the other, at least one."""
    for start in range(0, max(1, len(targets)), CHUNK):
        part = slice(start, start + CHUNK)
        yield checkpoint(_log_probs, head, hidden[part], targets[part], use_reentrant=False)  # pyright: ignore


def _log_probs(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    logits = head(hidden)
    wide = torch.promote_types(logits.dtype, torch.float32)
    return torch.log_softmax(logits.to(wide), -1).gather(1, targets.unsqueeze(1)).squeeze(1)
