"""The most probable token of each row of logits."""

from __future__ import annotations

from torch import Tensor

from ..common import accumulator


def best_tokens(logits: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """See nano3.kernels.best_tokens."""
    return logits[:, :limit].argmax(-1), logits.to(accumulator(logits.dtype)).logsumexp(-1)
