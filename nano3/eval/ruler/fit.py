"""The number of haystack units that fills a wanted number of tokens.

Every count is an exact one of the whole prompt, so a prompt is never too long. A long prompt takes seconds to write and
to count; the search therefore starts with short ones and extrapolates, where the reference adds units step by step.
"""

from __future__ import annotations

from dataclasses import dataclass

from nano3.eval.ruler.sample import CountTokens, Draft, Plan

SHARE = 0.95
"""Least share of a length that a sample uses."""
GOOD_ENOUGH = 0.98
"""Share at which the search stops."""
FIRST_STEP = 8
GROWTH = 16
"""Largest extrapolation in one step: units may get longer (the numbers of a numbered list)."""


class NoRoom(Exception):  # noqa: N818
    """Not even the shortest prompt fits; `tokens` is its count."""

    def __init__(self, tokens: int) -> None:
        super().__init__(tokens)
        self.tokens = tokens


@dataclass(frozen=True)
class _Point:
    units: int
    tokens: int


def fit(plan: Plan, count: CountTokens, length: int, other: int) -> tuple[Draft, int]:
    """The prompt and its tokens: with `other` (reserve and answer) at most `length`, at least 95 % where units allow.

    Raises:
        NoRoom: the shortest prompt is too long.
    """
    budget, goal = length - other, int(GOOD_ENOUGH * length) - other
    units, draft, tokens = _search(plan, count, budget, goal)
    if plan.refine is not None and tokens + other < SHARE * length:
        finer = plan.refine(units)
        _, better, more = _search(finer, count, budget, goal)
        if more > tokens:
            draft, tokens = better, more
    return draft, tokens


def _search(plan: Plan, count: CountTokens, budget: int, goal: int) -> tuple[int, Draft, int]:
    """Units, prompt and tokens of the first prompt found with `goal` to `budget` tokens, else of the longest."""
    best = plan.build(plan.least)
    low = _Point(plan.least, count(best.prompt))
    if low.tokens > budget:
        raise NoRoom(low.tokens)
    high: _Point | None = None
    previous = low
    step = FIRST_STEP
    while low.tokens < goal and not _closed(plan, low, high):
        units = _guess(plan, previous, low, high, (goal + budget) // 2, step)
        draft = plan.build(units)
        point = _Point(units, count(draft.prompt))
        if point.tokens > budget:
            high = point
            step = max(1, (high.units - low.units) // 2)
        else:
            previous, low, best = low, point, draft
            step *= 2
    return low.units, best, low.tokens


def _closed(plan: Plan, low: _Point, high: _Point | None) -> bool:
    """No number of units is left to try."""
    end = high.units if high else (plan.most + 1 if plan.most is not None else None)
    return end is not None and end - low.units <= 1


def _guess(plan: Plan, previous: _Point, low: _Point, high: _Point | None, wanted: int, step: int) -> int:
    """Units that should give `wanted` tokens, by the line through two points; by steps while there is only one."""
    other = high or previous
    slope = (low.tokens - other.tokens) / (low.units - other.units) if low.units != other.units else 0.0
    if slope > 0:
        tokens = min(wanted, GROWTH * max(low.tokens, 1))
        units = low.units + round((tokens - low.tokens) / slope)
    else:
        units = low.units + step
    if high is not None:
        # Halving now and then: a step in the counts can keep the line from ever closing the gap.
        if step <= 2 or not low.units < units < high.units:
            units = (low.units + high.units) // 2
        return max(low.units + 1, min(units, high.units - 1))
    units = max(low.units + 1, units)
    return units if plan.most is None else min(units, plan.most)
