"""Which category each sequence comes from: exact shares at every point of the run, with random access.

Shares become whole numbers m_c that sum to a period P. Inside a period the categories follow Tijdeman's rule for the
chairman assignment problem: after n sequences category c has had n * m_c / P of them, give or take less than one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from nano3.config.errors import UserError

LONGEST_PERIOD = 20_000
"""Shares that need a longer period are rounded to multiples of 1 / ROUNDED_PERIOD."""
ROUNDED_PERIOD = 10_000


class Blend:
    """Assignment of global sequence numbers to categories.

    Attributes:
        names: the categories with a share above zero, in the order given.
        shares: the share of each, exact, summing to 1.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        """Shares are the weights over their sum.

        Raises:
            UserError: no weight above zero, or one that is negative or not a number.
        """
        for name, weight in weights.items():
            if not math.isfinite(weight) or weight < 0:
                raise UserError(f"data.blend.{name} is {weight}: a share is a number of at least 0")
        self.names = [name for name, weight in weights.items() if weight > 0]
        if not self.names:
            raise UserError(
                "data.blend has no category with a share above 0: give one, for example python-stdlib = 100.0"
            )
        self._counts = _whole_shares([weights[name] for name in self.names])
        self._period = sum(self._counts)
        self.shares = {name: Fraction(m, self._period) for name, m in zip(self.names, self._counts, strict=True)}
        self._table = chairman(self._counts)
        self._rank = _ranks(self._table, len(self.names))

    def category(self, sequence: int) -> tuple[str, int]:
        """Category of a global sequence number, and how many earlier sequences had the same category."""
        turn, place = divmod(sequence, self._period)
        chosen = int(self._table[place])
        return self.names[chosen], turn * self._counts[chosen] + int(self._rank[place])


def chairman(counts: list[int]) -> np.ndarray:
    """Assignment of sum(counts) places to len(counts) categories, each prefix within one of the shares.

    Tijdeman (1980): at place n, of the categories that lag by at least 1 / (2k - 2), the one whose quota runs out
    first. All in whole numbers: lags are times P * (2k - 2).
    """
    period, k = sum(counts), len(counts)
    table = np.zeros(period, dtype=np.int32)
    if k == 1:
        return table
    share = np.array(counts, dtype=np.int64)
    scale = 2 * k - 2
    lag = np.zeros(k, dtype=np.int64)
    for place in range(period):
        lag += share * scale
        slack = (period * (scale - 1) - lag) / share
        slack[lag < period] = np.inf
        chosen = int(np.argmin(slack))
        table[place] = chosen
        lag[chosen] -= period * scale
    return table


def _ranks(table: np.ndarray, k: int) -> np.ndarray:
    """For each place, the number of earlier places with the same category."""
    rank = np.zeros(len(table), dtype=np.int64)
    for category in range(k):
        places = np.flatnonzero(table == category)
        rank[places] = np.arange(len(places))
    return rank


def _whole_shares(weights: list[float]) -> list[int]:
    """Whole numbers in the ratio of the weights, exactly where their sum stays below LONGEST_PERIOD."""
    exact = [Fraction(repr(float(weight))) for weight in weights]
    total = sum(exact)
    shares = [weight / total for weight in exact]
    period = math.lcm(*(share.denominator for share in shares))
    if period > LONGEST_PERIOD:
        return _rounded(shares)
    return [int(share * period) for share in shares]


def _rounded(shares: list[Fraction]) -> list[int]:
    """Largest-remainder rounding to ROUNDED_PERIOD, at least 1 each."""
    counts = [max(1, int(share * ROUNDED_PERIOD)) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: counts[i] - shares[i] * ROUNDED_PERIOD)
    for i in by_remainder[: max(0, ROUNDED_PERIOD - sum(counts))]:
        counts[i] += 1
    return counts
