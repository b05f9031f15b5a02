"""Circular comparison: N judgements of N responses in place of N(N-1)/2 (report section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

from nano3.rl.genrm import RANKS, Triple

MIDDLE = sum(RANKS) / 2


def pairs(n: int) -> list[tuple[int, int]]:
    """(first, second) of each judgement: every response stands once in each place.

    Raises:
        ValueError: fewer than 2 responses.
    """
    if n < 2:
        raise ValueError(f"{n} responses; a comparison needs 2 or more")
    return [(i, (i + 1) % n) for i in range(n)]


def base_rewards(n: int, judgements: Sequence[Triple]) -> list[float]:
    """The mean of each response's two scores, once ties were broken by the ranking.

    Where the scores of a pair are equal: s_i += 3.5 - ranking, s_j += ranking - 3.5.

    Args:
        n: number of responses.
        judgements: (score_i, score_j, ranking) of each pair, in the order of `pairs`.

    Raises:
        ValueError: as `pairs`, or another number of judgements.
    """
    compared = pairs(n)
    if len(judgements) != len(compared):
        raise ValueError(
            f"{len(judgements)} judgements of {n} responses; there is one for each of {len(compared)} pairs"
        )
    sums = [0.0] * n
    for (first, second), judgement in zip(compared, judgements, strict=True):
        scores = broken_tie(judgement)
        sums[first] += scores[0]
        sums[second] += scores[1]
    return [total / 2 for total in sums]


def broken_tie(judgement: Triple) -> tuple[float, float]:
    """Both scores, moved apart by the ranking where they are equal."""
    first, second, ranking = judgement
    shift = MIDDLE - ranking if first == second else 0.0
    return first + shift, second - shift
