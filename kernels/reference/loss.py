"""Cross-entropy and log-probabilities of the output projection, with all logits in memory, unlike the fast backends."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..common import LEAST_LOG_PROB, accumulator


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, ignore_index: int = -100, chunk_size: int | None = None
) -> Tensor:
    """See nano3.kernels.linear_cross_entropy; `chunk_size` has no effect here."""
    return F.cross_entropy(_logits(hidden, weight), targets, ignore_index=ignore_index, reduction="sum")


def log_probs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    entropy: bool = False,
    ignore_index: int = -100,
    chunk_size: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """See nano3.kernels.log_probs; `chunk_size` has no effect here."""
    all_log_probs = F.log_softmax(_logits(hidden, weight) / temperature, -1)
    ignored = targets == ignore_index
    places = targets.masked_fill(ignored, 0).unsqueeze(1)
    chosen = all_log_probs.gather(1, places).squeeze(1).masked_fill(ignored, 0.0)
    if not entropy:
        return chosen
    entropies = -(all_log_probs.exp() * all_log_probs.clamp_min(LEAST_LOG_PROB)).sum(-1)
    return chosen, entropies.masked_fill(ignored, 0.0)


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    wide = accumulator(hidden.dtype)
    return hidden.to(wide) @ weight.to(hidden.dtype).to(wide).T
