"""A generative reward model's output and its reward (report section 3.3, Equation 1)."""

from __future__ import annotations

import json
from typing import NamedTuple

SCORES, RANKS = (1, 5), (1, 6)
KEYS = ("score_1", "score_2", "ranking")


class Judgement(NamedTuple):
    """Of two responses."""

    score_1: float
    """Helpfulness of the first, 1 to 5."""
    score_2: float
    ranking: float
    """1: the first is far better, to 6: the second is."""

    def swapped(self) -> Judgement:
        """The same judgement of the responses in the other order."""
        return Judgement(self.score_2, self.score_1, RANKS[0] + RANKS[1] - self.ranking)


Triple = Judgement | tuple[float, float, float]


def genrm_reward(predicted: Triple | None, truth: Triple, format_ok: bool, c1: float = 10.0, c2: float = 1.0) -> float:
    """Equation 1: -c1 where the format is violated, minus how far both scores are off, and c2 times the ranking.

    Args:
        predicted: (score_1, score_2, ranking). None, where nothing could be read, is as far away as can be.
        truth: what people said.
        format_ok: the output has the form that was asked for.
        c1, c2: of the report.
    """
    if predicted is None:
        far = [
            max(value - low, high - value) for value, (low, high) in zip(truth, (SCORES, SCORES, RANKS), strict=True)
        ]
    else:
        far = [abs(one - other) for one, other in zip(predicted, truth, strict=True)]
    return -c1 * (not format_ok) - far[0] - far[1] - c2 * far[2]


def parse_judgement(answer: str) -> Judgement | None:
    """Of {"score_1": 1..5, "score_2": 1..5, "ranking": 1..6}, whole numbers, and nothing else; None for any other text.

    Args:
        answer: what the model says after its reasoning.
    """
    try:
        found = json.loads(answer, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.keys() != set(KEYS):
        return None
    values = [found[key] for key in KEYS]
    bounds = (SCORES, SCORES, RANKS)
    fits = all(type(v) is int and low <= v <= high for v, (low, high) in zip(values, bounds, strict=True))
    return Judgement(*values) if fits else None


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key twice")
    return dict(pairs)
