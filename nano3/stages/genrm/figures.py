"""How well a judge agrees with held-out preferences, beside the best judgement that does not look at the responses.

The best constant is chosen on the held-out pairs themselves, so it is as good as any constant can be: each score and
the ranking by its mean absolute error, in whole numbers, and for the order the response that is the better one more
often. A judgement that cannot be read is as far away as can be, as in Equation 1, and agrees with no order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from nano3.eval.intervals import bootstrap_means, middle95, wilson
from nano3.rl.feedback.environment import order
from nano3.rl.genrm import RANKS, SCORES, Judgement, genrm_reward

SEED = 0
"""Of the bootstrap."""
Verdict = Literal["better", "worse", "no clear difference"]
BOUNDS = (SCORES, SCORES, RANKS)


@dataclass(frozen=True)
class Judged:
    """A held-out pair."""

    truth: Judgement
    said: Judgement | None
    """None: it cannot be read."""


@dataclass(frozen=True)
class Difference:
    """Of two means over the same pairs."""

    value: float
    low: float
    """95 % interval, pairs resampled (paired bootstrap)."""
    high: float
    verdict: Verdict


@dataclass(frozen=True)
class Mean:
    """A judge's mean."""

    value: float
    low: float
    """95 % interval."""
    high: float
    over_constant: Difference
    """What it is more than the best constant's."""


@dataclass(frozen=True)
class Measure:
    """One figure of a judge, at the stages of its training."""

    name: str
    lower_is_better: bool
    pairs: int
    """That it is a mean of."""
    constant: float
    """The best constant's."""
    stages: dict[str, Mean]
    change: Difference | None
    """From the first stage to the last one; None where there is one."""


@dataclass(frozen=True)
class Scoring:
    """All figures."""

    constant: Judgement
    """The best one."""
    constant_order: int
    """The best constant order: -1 the first response is better, 1 the second."""
    measures: list[Measure]

    def table(self) -> dict[str, Any]:
        """As JSON values."""
        constant = {"judgement": list(self.constant), "order": self.constant_order}
        return {"constant": constant, "measures": [asdict(measure) for measure in self.measures]}


def best_constant(truths: Sequence[Judgement]) -> Judgement:
    """The whole numbers that are least off on average; of equally good ones the lowest."""
    columns = np.array(truths, float).T
    best = [
        min(range(low, high + 1), key=lambda value, column=column: np.abs(column - value).mean())
        for column, (low, high) in zip(columns, BOUNDS, strict=True)
    ]
    return Judgement(*best)


def best_order(truths: Sequence[Judgement]) -> int:
    """-1 or 1: which response is the better one more often."""
    return 1 if sum(map(order, truths)) > 0 else -1


def score(stages: Mapping[str, Sequence[Judged]], c1: float = 10.0, c2: float = 1.0) -> Scoring:
    """The figures of each stage's judgements of the same pairs, in the same order.

    Args:
        stages: at least one, by name.
        c1, c2: of Equation 1.
    """
    truths = [each.truth for each in next(iter(stages.values()))]
    constant, direction = best_constant(truths), best_order(truths)
    says_constant = [Judged(truth, constant) for truth in truths]
    agrees = {name: np.array([_agrees(each) for each in judged], float) for name, judged in stages.items()}
    ordered = np.array([order(truth) != 0 for truth in truths])
    measures = []
    for name, lower, value in _MEASURES:
        columns = {stage: _column(judged, value) for stage, judged in stages.items()}
        measures.append(_measure(name, lower, columns, _column(says_constant, value)))
    rewards = {stage: _rewards(judged, c1, c2) for stage, judged in stages.items()}
    measures.append(_measure("reward", False, rewards, _rewards(says_constant, c1, c2)))
    if ordered.any():
        always = np.array([order(truth) == direction for truth in truths], float)[ordered]
        columns = {stage: column[ordered] for stage, column in agrees.items()}
        measures.insert(0, _measure("order_agreement", False, columns, always))
    return Scoring(constant, direction, measures)


def mean_scores(judged: Sequence[Judged]) -> dict[float, tuple[float, int]]:
    """Mean score given, and number of responses, by true score; judgements that cannot be read are left out."""
    given: dict[float, list[float]] = {}
    for each in judged:
        if each.said is not None:
            for true, said in zip(each.truth[:2], each.said[:2], strict=True):
                given.setdefault(true, []).append(said)
    return {true: (sum(said) / len(said), len(said)) for true, said in sorted(given.items())}


def _errors(each: Judged) -> list[float]:
    """How far both scores and the ranking are off."""
    if each.said is None:
        return [max(true - low, high - true) for true, (low, high) in zip(each.truth, BOUNDS, strict=True)]
    return [abs(said - true) for said, true in zip(each.said, each.truth, strict=True)]


def _score_error(each: Judged) -> float:
    return sum(_errors(each)[:2]) / 2


def _ranking_error(each: Judged) -> float:
    return _errors(each)[2]


def _violates(each: Judged) -> float:
    return float(each.said is None)


def _agrees(each: Judged) -> bool:
    return each.said is not None and order(each.said) == order(each.truth)


_MEASURES: tuple[tuple[str, bool, Callable[[Judged], float]], ...] = (
    ("score_error", True, _score_error),
    ("ranking_error", True, _ranking_error),
    ("format_violations", True, _violates),
)
"""Name, whether lower is better, and value of a pair."""
SHARES = ("order_agreement", "format_violations")
"""Measures whose values are 0 or 1."""


def _column(judged: Sequence[Judged], value: Callable[[Judged], float]) -> np.ndarray:
    return np.array([value(each) for each in judged], float)


def _rewards(judged: Sequence[Judged], c1: float, c2: float) -> np.ndarray:
    return np.array([genrm_reward(each.said, each.truth, each.said is not None, c1, c2) for each in judged])


def _measure(name: str, lower: bool, stages: dict[str, np.ndarray], constant: np.ndarray) -> Measure:
    columns = list(stages.values())
    return Measure(
        name, lower, len(constant), float(constant.mean()),
        {stage: _mean(name, column, constant, lower) for stage, column in stages.items()},
        _difference(columns[-1] - columns[0], lower) if len(columns) > 1 else None,
    )  # fmt: skip


def _mean(name: str, column: np.ndarray, constant: np.ndarray, lower: bool) -> Mean:
    value = float(column.mean())
    low, high = wilson(value, len(column)) if name in SHARES else middle95(bootstrap_means(column.tolist(), SEED))
    return Mean(value, low, high, _difference(column - constant, lower))


def _difference(differences: np.ndarray, lower: bool) -> Difference:
    low, high = middle95(bootstrap_means(differences.tolist(), SEED))
    verdict: Verdict = "no clear difference"
    if low > 0 or high < 0:
        verdict = "better" if (high < 0) == lower else "worse"
    return Difference(float(differences.mean()), low, high, verdict)
