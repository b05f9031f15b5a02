"""A random order of any number of things, one place at a time, without a table of them."""

from __future__ import annotations

import hashlib
from functools import lru_cache

ROUNDS = 4


def permuted(place: int, count: int, key: tuple) -> int:
    """Where `place` goes in the permutation of range(count) that `key` selects.

    A Feistel network over the next power of four, walked until it lands inside the range (Black and Rogaway 2002).
    """
    assert 0 <= place < count
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    keys = _round_keys(repr(key))
    while True:
        place = _feistel(place, half, keys)
        if place < count:
            return place


def _feistel(value: int, half: int, keys: tuple[int, ...]) -> int:
    mask = (1 << half) - 1
    left, right = value >> half, value & mask
    for key in keys:
        mixed = (right + key) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        mixed = (mixed ^ mixed >> 29) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        left, right = right, left ^ (mixed >> 32 & mask)
    return left << half | right


@lru_cache(maxsize=64)
def _round_keys(key: str) -> tuple[int, ...]:
    digest = hashlib.blake2b(key.encode(), digest_size=8 * ROUNDS).digest()
    return tuple(int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(ROUNDS))
