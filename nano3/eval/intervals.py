"""How sure a mean of samples is: Wilson intervals of one mean, bootstrap intervals of means and differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

Z95 = 1.959963984540054
"""Quantile of the normal distribution for 95 % in the middle."""
RESAMPLES = 2000
CHUNK = 1 << 20
"""Most draws of the bootstrap that are in memory at once."""
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""97.5 % quantiles of Student's t with 1 to 10 degrees of freedom."""


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean; None for a single value."""
    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)


def wilson(mean: float, n: int, z: float = Z95) -> tuple[float, float]:
    """95 % interval (with `z` of another quantile: that one) of a mean of `n` values in [0, 1] (E. B. Wilson, 1927).

    Exact in form for values that are 0 or 1; for values between them it is a little wide, since their variance is
    smaller. Unlike mean ± 1.96 standard errors it has a width where all values are equal.
    """
    if n < 1:
        return 0.0, 1.0
    mean = min(1.0, max(0.0, mean))
    square = z * z / n
    centre = (mean + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(mean * (1 - mean) / n + square / (4 * n))
    # Exact at the ends, where rounding would leave a little.
    return 0.0 if mean == 0.0 else max(0.0, centre - half), 1.0 if mean == 1.0 else min(1.0, centre + half)


def told_interval(score: Mapping[str, Any], share: bool) -> tuple[float, float] | tuple[None, None]:
    """The 95 % interval that a score of a result tells, itself or by its standard error; `share`: of right answers, in
    percent."""
    value, error = float(score["value"]), score.get("stderr")
    if score.get("low") is not None and score.get("high") is not None:
        return float(score["low"]), float(score["high"])
    if error:
        return value - Z95 * error, value + Z95 * error
    # A standard error of 0 is that of samples which are all alike, not of certainty.
    if error is not None and score.get("n") and share:
        low, high = wilson(value / 100, score["n"])
        return 100 * low, 100 * high
    return None, None


def mean_of_means(groups: Sequence[Sequence[float]], z: float = Z95) -> tuple[float, float, float]:
    """Mean of the groups' means of values in [0, 1], and its 95 % interval: Wilson's of each group put together, as
    R. G. Newcombe (1998, method 10) does it for differences."""
    means = [sum(values) / len(values) for values in groups]
    ends = [wilson(mean, len(values), z) for mean, values in zip(means, groups, strict=True)]
    down = math.hypot(*(mean - low for mean, (low, _) in zip(means, ends, strict=True))) / len(groups)
    up = math.hypot(*(high - mean for mean, (_, high) in zip(means, ends, strict=True))) / len(groups)
    mean = sum(means) / len(means)
    return mean, max(0.0, mean - down), min(1.0, mean + up)


def difference_of_few(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    """95 % interval of the mean of the groups' mean differences, in [-1, 1], of a few pairs.

    Student's t with the spread about 0 (not about the mean, which few pairs that differ alike would make 0). For
    differences of 0 and ±1 it leaves out 0 only where McNemar's exact test says so at 5 % (fewer than 10 pairs): six
    pairs that all changed alike at the least.
    """
    n = sum(map(len, groups))
    mean = sum(sum(group) / len(group) for group in groups) / len(groups)
    error = math.sqrt(sum(sum(d * d for d in group) / len(group) ** 2 for group in groups)) / len(groups)
    half = student95(n) * error
    if not half:  # no pair differs: as many may as Wilson's interval of none says
        half = wilson(0.0, n, student95(n))[1]
    return max(-1.0, mean - half), min(1.0, mean + half)


def difference_of_others(first: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> tuple[float, float]:
    """95 % interval of the mean of `other` less that of `first`, a few samples each, not the same ones: both means'
    Wilson intervals put together, by Student's t of the smaller number."""
    z = student95(min(sum(map(len, groups)) for groups in (first, other)))
    (before, low, high), (now, now_low, now_high) = mean_of_means(first, z), mean_of_means(other, z)
    down, up = math.hypot(now - now_low, high - before), math.hypot(now_high - now, before - low)
    return now - before - down, now - before + up


def student95(n: int) -> float:
    """97.5 % quantile of Student's t with `n` degrees of freedom."""
    if n <= len(STUDENT):
        return STUDENT[max(n, 1) - 1]
    z = Z95  # Cornish and Fisher's expansion: off by less than 0.001 from here on
    return z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)


def bootstrap_means(values: Sequence[float], seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Means of samples drawn from `values` with replacement, (resamples,) float64; the same for the same seed."""
    import numpy as np

    data, rng = np.asarray(values, dtype=np.float64), np.random.default_rng(seed)
    rows = max(1, CHUNK // len(data))
    counts = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    return np.concatenate([data[rng.integers(0, len(data), (count, len(data)))].mean(axis=1) for count in counts])


def middle95(values: np.ndarray) -> tuple[float, float]:
    """What lies between the 2.5 % and the 97.5 % quantile."""
    import numpy as np

    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
