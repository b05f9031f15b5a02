"""Group-relative advantages with a leave-one-out baseline (report section 3.2; GRPO, arXiv 2402.03300)."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-6
"""Added to the standard deviation before it divides."""


def group_advantages(rewards: Tensor) -> Tensor:
    """Each reward against those of the other samples of its prompt: minus their mean, over their standard deviation.

    The deviation is that of a sample (Bessel). Where the others are all equal there is no division: in floating point
    the deviation of seven rewards of 0.6 is not 0 but 1e-8, and dividing by it would make an advantage of -600,000.

    Args:
        rewards: (P, G) of P prompts with G >= 2 samples each. Samples that are not trained on, as truncated ones, have
            their reward here all the same: they are part of the baseline.

    Returns:
        (P, G) as `rewards`, or float32 for whole numbers.

    Raises:
        ValueError: not of this shape, or a reward that is no finite number.
    """
    others = _others(_checked(rewards))
    wide = rewards.double()
    baseline = others.mean(-1)
    # Two passes in float64: what float32 rewards differ by is then far above what the sums round.
    spread = ((others - baseline.unsqueeze(-1)).square().sum(-1) / max(1, others.shape[-1] - 1)).sqrt()
    divisor = torch.where(others.amax(-1) == others.amin(-1), 1.0, spread + EPSILON)
    found = (wide - baseline) / divisor
    # Equal rewards have no advantage, whatever their mean rounds to.
    found = torch.where(has_no_variance(rewards).unsqueeze(-1), 0.0, found)
    return found.to(rewards.dtype if rewards.is_floating_point() else torch.float32)


def has_no_variance(rewards: Tensor) -> Tensor:
    """(P,) bool: all samples of the prompt have the same reward, so nothing can be learnt from them.

    Args:
        rewards: (P, G).
    """
    return rewards.amax(-1) == rewards.amin(-1)


def _others(rewards: Tensor) -> Tensor:
    """(P, G, G - 1) float64: for each sample the rewards of the others of its prompt."""
    n = rewards.shape[-1]
    place = torch.arange(n - 1, device=rewards.device).expand(n, n - 1)
    own = torch.arange(n, device=rewards.device).unsqueeze(1)
    return rewards.double()[:, place + (place >= own)]


def _checked(rewards: Tensor) -> Tensor:
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise ValueError(f"rewards are {tuple(rewards.shape)}; they must be (prompts, samples), 2 samples or more")
    if not rewards.isfinite().all():
        raise ValueError("a reward is NaN or infinite; drop its group, as for an error of its environment")
    return rewards
