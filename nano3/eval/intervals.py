"""How sure a mean of samples is: Wilson intervals of one mean, bootstrap intervals of means and differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Z95 = 1.959963984540054
"""Quantile of the normal distribution for 95 % in the middle."""
RESAMPLES = 2000


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean; None for a single value."""
    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)


def wilson(mean: float, n: int) -> tuple[float, float]:
    """95 % interval of a mean of `n` values in [0, 1] (E. B. Wilson, 1927).

    Exact in form for values that are 0 or 1; for values between them it is a little wide, since their variance is
    smaller. Unlike mean ± 1.96 standard errors it has a width where all values are equal.
    """
    if n < 1:
        return 0.0, 1.0
    mean = min(1.0, max(0.0, mean))
    square = Z95 * Z95 / n
    centre = (mean + square / 2) / (1 + square)
    half = Z95 / (1 + square) * math.sqrt(mean * (1 - mean) / n + square / (4 * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_means(values: Sequence[float], seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Means of samples drawn from `values` with replacement, (resamples,) float64; the same for the same seed."""
    import numpy as np

    data = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(0, len(data), (resamples, len(data)))
    return data[draws].mean(axis=1)


def middle95(values: np.ndarray) -> tuple[float, float]:
    """What lies between the 2.5 % and the 97.5 % quantile."""
    import numpy as np

    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
