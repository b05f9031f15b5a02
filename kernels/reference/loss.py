"""Cross-entropy of the output projection, with all logits in memory (the fast backends never hold them)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..common import accumulator


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, ignore_index: int = -100, chunk_size: int | None = None
) -> Tensor:
    """See nano3.kernels.linear_cross_entropy; `chunk_size` has no effect here."""
    return F.cross_entropy(_logits(hidden, weight), targets, ignore_index=ignore_index, reduction="sum")


def token_log_probs(hidden: Tensor, weight: Tensor, targets: Tensor, *, chunk_size: int | None = None) -> Tensor:
    """See nano3.kernels.token_log_probs; `chunk_size` has no effect here."""
    return -F.cross_entropy(_logits(hidden, weight), targets, reduction="none")


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    wide = accumulator(hidden.dtype)
    return hidden.to(wide) @ weight.to(hidden.dtype).to(wide).T
