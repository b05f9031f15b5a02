"""Who holds which state slots and pages."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence


class FreeList:
    """Numbers 0 .. n-1, handed out lowest first so that those in use stay neighbours."""

    def __init__(self, n: int) -> None:
        self.total = n
        self._next = 0
        self._returned: list[int] = []

    @property
    def free(self) -> int:
        """How many are left."""
        return self.total - self._next + len(self._returned)

    @property
    def used(self) -> int:
        """How many are out."""
        return self.total - self.free

    def take(self) -> int | None:
        """The lowest free number, None when all are out."""
        if self._returned:
            return heapq.heappop(self._returned)
        if self._next == self.total:
            return None
        self._next += 1
        return self._next - 1

    def give_back(self, number: int) -> None:
        """Make a number free again."""
        heapq.heappush(self._returned, number)


class Pages:
    """Pages with a count of their holders: running sequences, and kept prefixes, whose pages can be had back."""

    def __init__(self, n: int) -> None:
        self._free = FreeList(n)
        self._holders = [0] * min(n, 1)
        self._sequences = [0] * min(n, 1)
        self.total = n
        self.in_sequences = 0
        """Pages that a running sequence holds."""

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        return self._free.free

    @property
    def used(self) -> int:
        """Pages that somebody holds."""
        return self._free.used

    def take(self, count: int) -> list[int] | None:
        """`count` new pages for a sequence, or None (and nothing taken) when there are not so many."""
        if count > self._free.free:
            return None
        taken = [page for _ in range(count) if (page := self._free.take()) is not None]
        self.hold(taken)
        return taken

    def missing(self, shared: Iterable[int], count: int) -> bool:
        """Whether `count` new pages beside `shared` ones could not be had even if all kept prefixes were dropped."""
        idle = sum(not self._in_sequence(page) for page in shared)
        return count + idle > self.total - self.in_sequences

    def hold(self, pages: Iterable[int], *, kept: bool = False) -> None:
        """One more holder of each: a sequence, or with `kept` a kept prefix."""
        for page in pages:
            self._grow(page)
            self._holders[page] += 1
            if not kept:
                self.in_sequences += self._sequences[page] == 0
                self._sequences[page] += 1

    def release(self, pages: Sequence[int], *, kept: bool = False) -> None:
        """One holder less of each; a page without any is free."""
        for page in pages:
            self._holders[page] -= 1
            if not kept:
                self._sequences[page] -= 1
                self.in_sequences -= self._sequences[page] == 0
            assert 0 <= self._sequences[page] <= self._holders[page], "page released more often than held"
            if self._holders[page] == 0:
                self._free.give_back(page)

    def _in_sequence(self, page: int) -> bool:
        return page < len(self._sequences) and self._sequences[page] > 0

    def _grow(self, page: int) -> None:
        if page >= len(self._holders):
            more = max(page + 1, 2 * len(self._holders)) - len(self._holders)
            self._holders.extend([0] * more)
            self._sequences.extend([0] * more)
