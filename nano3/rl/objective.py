"""The policy loss of synchronous GRPO (report section 3.2 and its public recipe)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nano3.kernels.host_copies import highest


def clipped_surrogate(ratio: Tensor | float, advantage: Tensor | float, low: float = 0.2, high: float = 0.28) -> Tensor:
    """PPO's clipped loss of each token, with bounds of their own below and above (DAPO, arXiv 2503.14476).

    Args:
        ratio: probability of the token under the policy now over that under the policy before the update.
        advantage: of the token's sample; as `ratio`, or broadcast to it.
        low, high: the ratio is cut to [1 - low, 1 + high] where a larger step would lower the loss further.

    Returns:
        -min(ratio * advantage, clip(ratio) * advantage).
    """
    ratio = torch.as_tensor(ratio)
    advantage = advantage if isinstance(advantage, Tensor) else ratio.new_tensor(advantage)
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def masked_importance_weights(weights: Tensor, low: float = 0.5, high: float = 5.0) -> Tensor:
    """Importance weights of tokens, 0 where they lie outside [low, high] or are no number: those are not trained on.

    Args:
        weights: exp(log-probability in the trainer - that in the sampler), of any shape.
        low, high: the bounds, themselves inside.

    Returns:
        As `weights`, without gradient.
    """
    weights = torch.as_tensor(weights).detach()
    return torch.where((weights >= low) & (weights <= high), weights, 0.0)


def masked_sequences(
    differences: Tensor,
    kept: Tensor,
    sequence_ids: Tensor,
    threshold: float = 2.0,
    count: int = 0,
    add_up: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Tensor:
    """Which tokens belong to a sequence on which trainer and sampler disagree as a whole.

    A sequence's mismatch is the mean of exp(|difference|) over its kept tokens (in NeMo RL's recipes the bound is
    `seq_logprob_error_threshold`).

    Args:
        differences: (B, T) log-probability in the trainer - that in the sampler.
        kept: (B, T) bool, the tokens that are trained on.
        sequence_ids: (B, T) int from 0, the sequence of each token within its row.
        threshold: largest mismatch that is trained on; 1 is perfect agreement.
        count: S, more than the greatest id; 0: one more.
        add_up: where rows are slices of longer ones: (2, B, S) sums over each slice -> those over its whole row.

    Returns:
        (B, T) bool, False at tokens that are not kept. A sequence whose mismatch is no number is masked.
    """
    n = count or highest(sequence_ids) + 1
    row = torch.arange(len(kept), device=kept.device).unsqueeze(1)
    sequence = (row * n + sequence_ids).flatten()
    # Others count for nothing where they stand: to pick the kept ones out, a GPU would have to be waited for.
    errors = torch.where(kept, differences.detach().double().abs().exp(), 0.0)
    each = torch.stack([errors.flatten(), kept.flatten().to(errors.dtype)])
    of_rows = each.new_zeros(2, len(kept) * n).index_add(1, sequence, each).unflatten(1, (-1, n))
    sums, counts = add_up(of_rows).flatten(1)
    return kept & ~(sums / counts <= threshold)[sequence].view_as(kept)


def k3_divergence(log_probs: Tensor, reference: Tensor) -> Tensor:
    """Estimate of KL(policy || reference) from tokens that the policy drew: r - 1 - log r with r = reference / policy.

    Never negative, unbiased, of low variance (J. Schulman, "Approximating KL divergence", k3).

    Args:
        log_probs: of the tokens under the policy; differentiable.
        reference: of the same tokens under the reference, of the same shape.
    """
    log_ratio = reference - log_probs
    return torch.expm1(log_ratio) - log_ratio
