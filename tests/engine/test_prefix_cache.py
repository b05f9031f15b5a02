import random

import pytest

from nano3.engine.memory import FreeList, Pages
from nano3.engine.prefix_cache import BlockHashes, PrefixCache

pytestmark = pytest.mark.any_isa

BLOCK, PAGE = 4, 2


class Kept:
    def __init__(self, n=50):
        self.slots, self.pages = FreeList(n), Pages(n * 10)
        self.cache = PrefixCache(self.slots, self.pages, BLOCK, PAGE)

    def add(self, tokens, length):
        pages = self.pages.take(-(-len(tokens) // PAGE))
        self.cache.add(BlockHashes(BLOCK).key(tokens, length), length, self.slots.take(), pages)
        self.pages.release(pages)

    def longest(self, tokens, limit=None):
        entry = self.cache.match(tokens, BlockHashes(BLOCK), len(tokens) - 1 if limit is None else limit)
        return entry.length if entry else 0


def test_finds_the_longest_kept_beginning():
    rng = random.Random(0)
    kept, texts = Kept(), []
    for _ in range(30):
        base = rng.choice(texts)[: rng.randrange(1, 15)] if texts else []
        text = base + [rng.randrange(3) for _ in range(rng.randrange(2, 12))]
        texts.append(text)
        kept.add(text, rng.randrange(1, len(text) + 1))
    lengths = {}
    for text in texts:
        for length in range(1, len(text) + 1):
            if BlockHashes(BLOCK).key(text, length) in kept.cache:
                lengths[tuple(text[:length])] = length
    for text in texts:
        limit = rng.randrange(1, len(text) + 1)
        expected = max((n for head, n in lengths.items() if n <= limit and tuple(text[:n]) == head), default=0)
        assert kept.longest(text, limit) == expected


def test_the_least_recently_used_goes_first_and_frees_everything():
    kept = Kept()
    for first in (1, 2, 3):
        kept.add([first] * 9, 8)
    assert kept.longest([1] * 20) == 8
    kept.cache.drop_oldest()
    assert [kept.longest([first] * 20) for first in (1, 2, 3)] == [8, 0, 8]
    kept.cache.clear()
    assert (kept.slots.used, kept.pages.used, len(kept.cache)) == (0, 0, 0)
    assert kept.longest([1] * 20) == 0


def test_an_entry_kept_twice_takes_one_slot():
    kept = Kept()
    for _ in range(2):
        kept.add([5] * 9, 6)
    assert (kept.slots.used, kept.pages.used) == (1, 3)


def test_pages_live_as_long_as_anyone_holds_them():
    pages = Pages(4)
    first = pages.take(3)
    pages.hold(first[:1])
    pages.release(first)
    assert pages.used == 1
    assert pages.take(4) is None
    assert pages.used == 1
    pages.release(first[:1])
    assert pages.free == 4


def test_numbers_come_lowest_first():
    free = FreeList(5)
    assert [free.take() for _ in range(4)] == [0, 1, 2, 3]
    free.give_back(2)
    free.give_back(0)
    assert [free.take(), free.take(), free.take(), free.take()] == [0, 2, 4, None]


def test_pages_of_kept_prefixes_can_be_had_back():
    pages = Pages(10)
    running, kept = pages.take(4), pages.take(3)
    pages.hold([*kept, running[0]], kept=True)
    pages.release(kept)
    assert (pages.free, pages.in_sequences) == (3, 4)
    assert not pages.missing([], 6)
    assert pages.missing([], 7)
    assert pages.missing(kept[:1], 6)
    assert not pages.missing(running[:2], 6)
