"""Documents as sets of word n-grams, and how much two sets have in common."""

from __future__ import annotations

import hashlib
import re

import numpy as np

_WORD = re.compile(r"\w+")
_MOST_WORDS = 1 << 20
_FACTOR, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)
_hashes: dict[str, int] = {}


def words_of(text: str) -> list[str]:
    """Words in lower case; signs and white space do not count."""
    return _WORD.findall(text.lower())


def word_ngrams(text: str, n: int) -> list[str]:
    """All runs of `n` words; a shorter text is one run, and one without words none."""
    words = words_of(text)
    return [" ".join(words[i : i + n]) for i in range(max(1, len(words) - n + 1))] if words else []


def shingles(text: str, n: int) -> np.ndarray:
    """The set of the hashes of all runs of `n` words: sorted, each once, (shingles,) uint64."""
    words = words_of(text)
    if not words:
        return np.zeros(0, np.uint64)
    hashes = np.fromiter(map(_hash, words), np.uint64, len(words))
    n = min(n, len(hashes))
    runs = np.zeros(len(hashes) - n + 1, np.uint64)
    for i in range(n):
        runs = (runs * _FACTOR) ^ hashes[i : len(hashes) - n + 1 + i]
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
        if len(_hashes) >= _MOST_WORDS:
            _hashes.clear()
        found = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
        _hashes[word] = found
    return found
