"""Documents as sets of word n-grams, and how much two sets have in common."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

import numpy as np

from nano3.curate.pieces import word_pieces

_WORD = re.compile(r"\w+")
_MOST_WORDS, LONGEST_WORD = 1 << 20, 64
"""Words whose hashes are remembered, and characters of the longest of them."""
_FACTOR, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)
_hashes: dict[str, int] = {}


def has_words(text: str) -> bool:
    """Whether there is anything but signs and white space."""
    return _WORD.search(text) is not None


def word_ngrams(text: str, n: int) -> Iterator[list[str]]:
    """All runs of `n` words in lower case, in batches; signs do not count. A shorter text is one run, and one without
    words none."""
    words, found = [], False
    for batch in _word_batches(text):
        words += batch
        if len(words) >= n:
            yield [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
            words, found = words[len(words) - n + 1 :], True
    if words and not found:
        yield [" ".join(words)]


def shingles(text: str, n: int) -> np.ndarray:
    """The set of the hashes of all runs of `n` words: sorted, each once, (shingles,) uint64."""
    words, found = np.zeros(0, np.uint64), []
    for batch in _word_batches(text):
        words = np.concatenate([words, np.fromiter(map(_hash, batch), np.uint64, len(batch))])
        if len(words) >= n:
            found.append(_run_hashes(words, n))
            words = words[len(words) - n + 1 :]
    if len(words) and not found:
        found.append(_run_hashes(words, len(words)))
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *found]))


def _word_batches(text: str) -> Iterator[list[str]]:
    return filter(None, map(_WORD.findall, word_pieces(text.lower())))


def _run_hashes(words: np.ndarray, n: int) -> np.ndarray:
    """Hashes of all runs of `n` words, of their own hashes; each once."""
    runs = np.zeros(len(words) - n + 1, np.uint64)
    for i in range(n):
        runs = (runs * _FACTOR) ^ words[i : len(words) - n + 1 + i]
        runs = (runs ^ (runs >> np.uint64(29))) * _MIX
    return np.unique(runs ^ (runs >> np.uint64(32)))


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Shingles in both sets as a part of those in either."""
    both = len(np.intersect1d(one, other, assume_unique=True))
    either = len(one) + len(other) - both
    return both / either if either else 1.0


def at_least(one: np.ndarray, other: np.ndarray, threshold: float) -> bool:
    """Whether their Jaccard similarity reaches a threshold; sizes alone often tell that it does not."""
    few, many = sorted((len(one), len(other)))
    return few >= threshold * many and jaccard(one, other) >= threshold


def _hash(word: str) -> int:
    found = _hashes.get(word)
    if found is None:
        found = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
        if len(_hashes) >= _MOST_WORDS:
            _hashes.clear()
        if len(word) <= LONGEST_WORD:
            _hashes[word] = found
    return found
