"""States kept at points of earlier prompts, so that a prompt with the same beginning starts there.

Attention alone could reuse any page; a scan state exists only where it was kept. An entry is a state slot with the
pages of all tokens before it. Entries are found by the tokens themselves and dropped least recently used first.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nano3.engine.memory import FreeList, Pages

Key = tuple[bytes, tuple[int, ...]]
"""Hash of the whole blocks, and the tokens after them."""


@dataclass(frozen=True)
class Entry:
    """The state after the first `length` tokens of some prompt."""

    key: Key
    length: int
    slot: int
    pages: tuple[int, ...]
    experts: tuple[np.ndarray, ...] | None = None
    """(MoE blocks, tokens, K) that the tokens used, of requests that report them: pieces that longer entries share."""


class BlockHashes:
    """Chained hashes of a growing token list's whole blocks; lists of another `kind` never share an entry."""

    def __init__(self, block: int, kind: bytes = b"") -> None:
        self.block = block
        self._hashes = [kind]

    def upto(self, tokens: Sequence[int], blocks: int) -> bytes:
        """Hash of the first `blocks` blocks; tokens only ever grow at the end."""
        while len(self._hashes) <= blocks:
            start = (len(self._hashes) - 1) * self.block
            part = array("q", tokens[start : start + self.block]).tobytes()
            self._hashes.append(hashlib.blake2b(self._hashes[-1] + part, digest_size=16).digest())
        return self._hashes[blocks]

    def key(self, tokens: Sequence[int], length: int) -> Key:
        """Key of the first `length` tokens."""
        blocks = length // self.block
        return self.upto(tokens, blocks), tuple(tokens[blocks * self.block : length])


class PrefixCache:
    """Entries that take what memory the running sequences leave."""

    def __init__(self, slots: FreeList, pages: Pages, block: int, page_size: int) -> None:
        self._slots, self._pages = slots, pages
        self._block, self._page_size = block, page_size
        self._entries: OrderedDict[Key, Entry] = OrderedDict()
        self._lengths: dict[bytes, dict[int, int]] = {}  # block hash -> lengths of tails -> entries

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def match(
        self, tokens: Sequence[int], hashes: BlockHashes, limit: int, fits: Callable[[int], bool] = lambda _: True
    ) -> Entry | None:
        """The longest entry that covers a beginning of `tokens` of at most `limit` tokens, of a length that `fits`; it
        counts as used."""
        if not self._entries:
            return None
        for blocks in range(limit // self._block, -1, -1):
            head, start = hashes.upto(tokens, blocks), blocks * self._block
            for tail in sorted(self._lengths.get(head, ()), reverse=True):
                if start + tail > limit or not fits(start + tail):
                    continue
                entry = self._entries.get((head, tuple(tokens[start : start + tail])))
                if entry is not None:
                    self._entries.move_to_end(entry.key)
                    return entry
        return None

    def touch(self, key: Key) -> None:
        """Count an entry as used."""
        self._entries.move_to_end(key)

    def add(
        self, key: Key, length: int, slot: int, pages: Sequence[int], experts: tuple[np.ndarray, ...] | None = None
    ) -> None:
        """Keep a slot, which becomes the cache's, with the pages of its first `length` tokens."""
        if key in self._entries:
            self._slots.give_back(slot)
            return
        held = tuple(pages[: -(-length // self._page_size)])
        self._pages.hold(held, kept=True)
        self._entries[key] = Entry(key, length, slot, held, experts)
        tails = self._lengths.setdefault(key[0], {})
        tails[len(key[1])] = tails.get(len(key[1]), 0) + 1

    def drop_oldest(self) -> bool:
        """Free the least recently used entry; False when there is none."""
        if not self._entries:
            return False
        _, entry = self._entries.popitem(last=False)
        self._slots.give_back(entry.slot)
        self._pages.release(entry.pages, kept=True)
        tails, tail = self._lengths[entry.key[0]], len(entry.key[1])
        tails[tail] -= 1
        if not tails[tail]:
            del tails[tail]
        if not tails:
            del self._lengths[entry.key[0]]
        return True

    def clear(self) -> None:
        """Free all entries."""
        while self.drop_oldest():
            pass
