"""Documents as sets of word n-grams, and how much two sets have in common."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

import numpy as np

from nano3.curate.pieces import word_pieces

SEED = 1
_FOREIGN_SIGNS = re.compile(r"[^\w\x00-\x7f]+")
"""What is neither ASCII nor in a word."""
_SPACE = 32
_SPACED = bytes(byte if byte > 127 or chr(byte).isalnum() or byte == ord("_") else _SPACE for byte in range(256))
"""Of UTF-8 in which every sign beyond ASCII belongs to a word: all others as spaces."""
_FACTOR, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)


def shingles(text: str, n: int) -> np.ndarray:
    """The set of the hashes of all runs of `n` words: sorted, each once, (shingles,) uint64."""
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *map(np.unique, run_hashes(text, n))]))


def run_hashes(text: str, n: int) -> Iterator[np.ndarray]:
    """Hashes of all runs of `n` words in lower case, in batches, (runs,) uint64; signs do not count. A shorter text is
    one run, and one without words none."""
    words, found = np.zeros(0, np.uint64), False
    for piece in word_pieces(text.lower()):
        words = np.concatenate([words, _word_hashes(piece)])
        if len(words) >= n:
            yield _joined(words, n)
            words, found = words[len(words) - n + 1 :], True
    if len(words) and not found:
        yield _joined(words, len(words))


def _word_hashes(text: str) -> np.ndarray:
    """Hashes of the words of a text, in order, (words,) uint64.

    That of a word is the sum of (a random number for byte i) * factor ** i, modulo 2**64. All are found at once as
    differences of one running sum, each divided by the power of the factor at which its word begins.
    """
    if not text.isascii():
        text = _FOREIGN_SIGNS.sub(" ", text)
    data = np.frombuffer(text.encode().translate(_SPACED), np.uint8)
    in_word = np.zeros(len(data) + 2, bool)
    np.not_equal(data, _SPACE, out=in_word[1:-1])
    edges = np.flatnonzero(in_word[1:] != in_word[:-1])
    starts, ends = edges[::2], edges[1::2]
    powers, inverses = _powers(max(1, len(data) - 1).bit_length())
    sums = np.zeros(len(data) + 1, np.uint64)
    np.multiply(_byte_numbers()[data], powers[: len(data)], out=sums[1:])
    np.cumsum(sums[1:], out=sums[1:])
    return (sums[ends] - sums[starts]) * inverses[starts]


@cache
def _byte_numbers() -> np.ndarray:
    return np.random.default_rng(SEED).integers(0, 1 << 64, 256, np.uint64)


@cache
def _powers(bits: int) -> tuple[np.ndarray, np.ndarray]:
    """The first 2**bits powers of the factor, which is odd, and their inverses modulo 2**64."""
    inverse = np.uint64(pow(int(_FACTOR), -1, 1 << 64))
    return tuple(  # type: ignore[return-value]
        np.cumprod(np.concatenate([np.ones(1, np.uint64), np.full((1 << bits) - 1, factor)]))
        for factor in (_FACTOR, inverse)
    )


def _joined(words: np.ndarray, n: int) -> np.ndarray:
    """Hashes of all runs of `n` words, of their own hashes."""
    runs = np.zeros(len(words) - n + 1, np.uint64)
    for i in range(n):
        runs = (runs * _FACTOR) ^ words[i : len(words) - n + 1 + i]
        runs = (runs ^ (runs >> np.uint64(29))) * _MIX
    return runs ^ (runs >> np.uint64(32))


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Shingles in both sets as a part of those in either."""
    both = len(np.intersect1d(one, other, assume_unique=True))
    either = len(one) + len(other) - both
    return both / either if either else 1.0


def jaccard_from(least: float, one: np.ndarray, other: np.ndarray) -> float:
    """The Jaccard similarity where it reaches `least`, else 0; sizes alone often tell that it does not."""
    few, many = sorted((len(one), len(other)))
    found = jaccard(one, other) if few >= least * many else 0.0
    return found if found >= least else 0.0
