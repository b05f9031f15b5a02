"""Two responses to one prompt, with their scores and ranking."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nano3.data.tasks.task import Message, content_hash
from nano3.data.texts.corpus import is_heldout

MIDDLE = 3.5
"""The ranking of a tie."""
SWAPPED = "-swapped"
"""Ends the id of a pair in the other order."""

_NAMED = re.compile(r"\b(response[ _]?)([12])\b", re.IGNORECASE)
_IN_TURN = re.compile(r"^(response[ _]?2\b.*)\n(response[ _]?1\b.*)$", re.IGNORECASE | re.MULTILINE)
"""Two lines, the first on the second response and the other way round."""


@dataclass(frozen=True)
class PreferencePair:
    """What people, or a rule, said of two responses."""

    prompt: list[Message]
    """The conversation that both answer, in OpenAI's form."""
    response_1: str
    response_2: str
    score_1: float
    """Helpfulness of the first, 1 to 5."""
    score_2: float
    ranking: float
    """1: the first is far better, to 6: the second is; 3.5 is a tie."""
    analysis: str = ""
    """Why, in words; empty: nothing is known. "Response 1" and "Response 2" in it name the two, and are swapped too: of
    two lines, a line on each, the one on Response 1 stays the first."""
    about: str = ""
    """What decides its side of a split; empty: its prompt."""
    order: str = ""
    """`-swapped` in the other order."""

    @property
    def id(self) -> str:
        """Differs between pairs of other prompts, responses or order."""
        first, second = self.response_1, self.response_2
        kept = (second, first) if self.order else (first, second)
        return f"pair-{content_hash(json.dumps([self.prompt, *kept], sort_keys=True))}{self.order}"

    def swapped(self) -> PreferencePair:
        """The same two in the other order (report section 3.3: the data are augmented so)."""
        return replace(
            self, response_1=self.response_2, response_2=self.response_1, score_1=self.score_2, score_2=self.score_1,
            ranking=2 * MIDDLE - self.ranking, analysis=_IN_TURN.sub(r"\2\n\1", _NAMED.sub(_other_one, self.analysis)),
            order="" if self.order else SWAPPED,
        )  # fmt: skip

    def row(self) -> dict[str, Any]:
        """As a row of the plain layout."""
        row: dict[str, Any] = {
            "prompt": self.prompt, "response_1": self.response_1, "response_2": self.response_2,
            "score_1": self.score_1, "score_2": self.score_2, "ranking": self.ranking,
        }  # fmt: skip
        return row | ({"analysis": self.analysis} if self.analysis else {})


def in_both_orders(pairs: Iterable[PreferencePair]) -> list[PreferencePair]:
    """Each pair, then the same swapped."""
    return [each for pair in pairs for each in (pair, pair.swapped())]


def split_pairs(
    pairs: Sequence[PreferencePair], heldout_fraction: float, seed: int = 0
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Training and held-out pairs; all pairs of one prompt are on one side."""
    about = [pair.about or json.dumps(pair.prompt, sort_keys=True) for pair in pairs]
    hashes = np.array([int(content_hash(text), 16) for text in about], np.uint64)
    heldout = is_heldout(hashes, heldout_fraction, seed)
    sides = [[pair for pair, held in zip(pairs, heldout, strict=True) if held == side] for side in (False, True)]
    return sides[0], sides[1]


def _other_one(named: re.Match[str]) -> str:
    return named[1] + ("2" if named[2] == "1" else "1")
