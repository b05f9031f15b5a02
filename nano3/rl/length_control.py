"""Group-relative length control and the bonus for concise responses (report section 3.3, Equations 3 to 6)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from nano3.rl.environments.base import DECIMALS


class Breakdown(NamedTuple):
    """Rewards of a group, term by term; each list has one entry a response."""

    adjustment: list[float]
    """For length: think and answer adjustments with their weights, together 0 over the group."""
    threshold: float
    """Base reward from which on a response may have a bonus."""
    reward: list[float]
    """Base reward, adjustment and bonuses, rounded as any reward: equal responses must have equal ones."""
    think_adjustment: list[float]
    answer_adjustment: list[float]
    think_bonus: list[float]
    answer_bonus: list[float]


def control(
    base: Sequence[float],
    think: Sequence[int],
    answer: Sequence[int],
    think_weight: float = 0.5,
    answer_weight: float = 0.5,
    think_bonus: float = 0.5,
    answer_bonus: float = 0.5,
    quantile: float = 0.8,
) -> Breakdown:
    """Move rewards of a group towards its shorter responses.

    Of each part (thinking, answer) w_i = 1 - (length_i - shortest) / (longest - shortest), all 0 where lengths are
    equal, minus the mean of the group. The shortest thinking and the shortest answer get a bonus where their base
    reward is at least the group's quantile; of several shortest ones the first.

    Args:
        base: rewards of the responses to one prompt.
        think, answer: lengths of their parts in tokens.
        think_weight, answer_weight: of the adjustments.
        think_bonus, answer_bonus: 0 for none.
        quantile: of base rewards, interpolated.

    Raises:
        ValueError: an empty group, or parts of different sizes.
    """
    if not base or not len(base) == len(think) == len(answer):
        raise ValueError(
            f"{len(base)} rewards with {len(think)} and {len(answer)} lengths; give one of each a response"
        )
    by_think = [think_weight * shorter for shorter in _centred(think)]
    by_answer = [answer_weight * shorter for shorter in _centred(answer)]
    threshold = _quantile(base, quantile)
    for_think = _bonus(base, think, threshold, think_bonus)
    for_answer = _bonus(base, answer, threshold, answer_bonus)
    adjustment = [a + b for a, b in zip(by_think, by_answer, strict=True)]
    reward = [round(sum(terms), DECIMALS) for terms in zip(base, adjustment, for_think, for_answer, strict=True)]
    return Breakdown(adjustment, threshold, reward, by_think, by_answer, for_think, for_answer)


def _centred(lengths: Sequence[int]) -> list[float]:
    low, high = min(lengths), max(lengths)
    shorter = [1 - (length - low) / (high - low) if high > low else 0.0 for length in lengths]
    mean = math.fsum(shorter) / len(shorter)
    return [value - mean for value in shorter]


def _bonus(base: Sequence[float], lengths: Sequence[int], threshold: float, size: float) -> list[float]:
    shortest = list(lengths).index(min(lengths))
    return [size if i == shortest and base[i] >= threshold else 0.0 for i in range(len(base))]


def _quantile(values: Sequence[float], share: float) -> float:
    """Linear between the two nearest, as numpy's default."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
