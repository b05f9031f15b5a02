"""Guesses at the next tokens from what the sequence already said (prompt lookup; no draft model)."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST, SHORTEST = 3, 2
"""Tokens that must repeat before what followed them is proposed again."""


class NgramIndex:
    """Where each n-gram of a growing token list last ended."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}
        self._seen = 0

    def draft(self, tokens: Sequence[int], most: int) -> tuple[int, ...]:
        """Up to `most` tokens that followed the latest earlier place that ended like `tokens` does now."""
        if most <= 0:
            return ()
        self._index(tokens)
        for n in range(LONGEST, SHORTEST - 1, -1):
            end = self._ends.get(tuple(tokens[-n:])) if len(tokens) >= n else None
            if end is not None:
                return tuple(tokens[end : end + most])
        return ()

    def _index(self, tokens: Sequence[int]) -> None:
        """Take in all n-grams but those that end the list: they would only find themselves."""
        for end in range(max(self._seen, SHORTEST), len(tokens)):
            for n in range(SHORTEST, min(LONGEST, end) + 1):
                self._ends[tuple(tokens[end - n : end])] = end
        self._seen = max(self._seen, len(tokens))
