"""Texts of a wanted number of tokens: counting pieces once, and cutting one so that the sum is met."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from nano3.config.errors import UserError

if TYPE_CHECKING:
    from nano3.data.tokens.tokenizer import Tokenizer

CountMany = Callable[[Sequence[str]], list[int]]
ENCODED_CHARACTERS = 1 << 20
NEAR = 12
TOLERANCE = 0.99
"""A text of at least this share of the wanted tokens is good."""
_PROBES = (
    "The first line ends here.\n\n",
    "Another one: 42\n",
    'key = "value"\n\n',
    "def f(a, b=3):\n    return a\n\n",
    "- item (see below)\n",
    "Ein Wort, naïve 日本語\n\n",
    "8f3a-91bc\n",
    "# comment!\n\n\n",
)


# Finest first: where a byte-level BPE vocabulary of the usual kinds cuts a text before it merges anything.
_SPLITS = (r"[^\r\n\w]?[A-Za-z]+|\d| ?[^\w\s]+\n*|\n+|.", r" ?[^ ]+| ", r"(?s:.+)")


class TokenCounter:
    """Token counts of texts.

    Attributes:
        additive: whether texts that end in a line break and begin with no white space keep their counts when they
            are joined, so that a joined text need not be counted again. True of byte-level BPE vocabularies.
    """

    def __init__(self, count_many: CountMany) -> None:
        self._count_many = count_many
        self._known: dict[str, int] = {}
        self._split = re.compile(_SPLITS[-1])
        parts = [a + b for a in _PROBES for b in _PROBES]
        alone = self.counts(_PROBES)
        pairs = [a + b for a in alone for b in alone]
        joined, whole = count_many(parts), count_many(["".join(parts)])
        self.additive = joined == pairs and whole == [sum(pairs)]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> TokenCounter:
        """Counts by a tokenizer of nano3."""
        return cls(lambda texts: [len(ids) for ids in tokenizer.encode_batch(texts)])

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text; for pieces that come again and again, whose counts are kept."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        self._known.update(zip(new, self.measure(new), strict=True))
        return [self._known[text] for text in texts]

    def learn(self, samples: Sequence[str]) -> None:
        """Find the finest pieces whose counts add up to those of `samples`, for `estimate`."""
        wanted = self.measure(samples)
        for pattern in _SPLITS:
            self._split = re.compile(pattern)
            if self.estimate(samples) == wanted:
                return

    def estimate(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text as the sum over small pieces whose counts are kept; exact on what `learn` was given.

        Many times as fast as encoding, for texts made of few words.
        """
        known, pieces = self._known, [self._split.findall(text) for text in texts]
        new = {piece for found in pieces for piece in found if piece not in known}
        if new:
            self.counts(sorted(new))
        return [sum(map(known.__getitem__, found)) for found in pieces]

    def pieces(self, text: str) -> list[str]:
        """The pieces that `estimate` adds up."""
        return self._split.findall(text)

    def measure(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, nothing kept."""
        return self._count_many(texts) if texts else []

    def prefix(self, head: str, text: str, end: str, tokens: int) -> tuple[str, int]:
        """`head` + the longest beginning of `text` + `end` that has `tokens` tokens or as few fewer as can be.

        Returns:
            The text and its tokens; ("", 0) where even `head + end` has more.
        """
        if self.additive and tokens > 400 and (place := _margin(text, tokens * 3 // 2)):
            (fixed,) = self.measure([head + text[:place]])
            if fixed < tokens - 100:
                rest, count = self.prefix("", text[place:], end, tokens - fixed)
                return head + text[:place] + rest, fixed + count
        low, high = 0, len(text)
        best, end_of_best = ("", 0), 0
        guess = min(high, tokens * 3)
        while best[1] < tokens:
            whole = head + text[:guess].rstrip() + end
            (count,) = self.measure([whole])
            if best[1] < count <= tokens:
                best, end_of_best = (whole, count), guess
            if low >= high:
                break
            low, high = (guess, high) if count <= tokens else (low, guess - 1)
            step = round((tokens - count) * max(1, guess) / max(1, count))
            guess = min(max(guess + step, low + 1), high) if step else (low + high + 1) // 2
        if best[1] == tokens:
            return best
        # Counts do not grow evenly with each letter: look around.
        tries = [
            head + text[: end_of_best + more].rstrip() + end for more in range(-NEAR, NEAR) if end_of_best + more > 0
        ]
        for whole, count in zip(tries, self.measure(tries), strict=True):
            if best[1] < count <= tokens:
                best = (whole, count)
        return best


def _margin(text: str, before: int) -> int:
    """Start of the last line at the margin before a place; 0 where there is none."""
    while (before := text.rfind("\n", 0, before)) > 0:
        if not text[before + 1 : before + 2].isspace():
            return before + 1
    return 0


def fitted(build: Callable[[int], tuple[str, int]], counter: TokenCounter, tokens: int) -> tuple[str, int]:
    """The text that `build` makes for a budget of tokens, and its tokens: at most `tokens`, at least 99 % of them.

    Args:
        build: gives a text whose pieces, counted alone, have a budget's sum or a little less, and that sum.
        counter: says whether sums of pieces are right; if not, the budget is changed until the text fits.
        tokens: the most tokens of the whole.

    Raises:
        UserError: no text fits.
    """
    text, count = build(tokens)
    if counter.additive and TOLERANCE * tokens <= count <= tokens:
        return text, count
    budget = tokens
    for _ in range(8):
        (count,) = counter.measure([text])
        if TOLERANCE * tokens <= count <= tokens:
            return text, count
        budget += round((1 + TOLERANCE) / 2 * tokens) - count
        text, _ = build(budget)
    raise UserError(f"no text of {tokens} tokens could be made (the last has {count}): choose greater lengths")


def plan_lengths(tokens: int, shares: Mapping[int, float]) -> list[int]:
    """Lengths of the texts that make up about `tokens` tokens, each length having its share of the tokens.

    Every length with a share comes at least once; long and short ones alternate evenly.
    """
    total = sum(shares.values())
    places: list[tuple[float, int]] = []
    for length, share in shares.items():
        n = max(1, round(tokens * share / total / length)) if share > 0 else 0
        places += [((k + 0.5) / n, length) for k in range(n)]
    return [length for _, length in sorted(places)]
