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
    """Pages with a count of their holders: sequences and kept prefixes."""

    def __init__(self, n: int) -> None:
        self._free = FreeList(n)
        self._holders = [0] * min(n, 1)
        self.total = n

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        return self._free.free

    @property
    def used(self) -> int:
        """Pages that somebody holds."""
        return self._free.used

    def take(self, count: int) -> list[int] | None:
        """`count` new pages, or None (and nothing taken) when there are not so many."""
        if count > self._free.free:
            return None
        pages = [self._free.take() for _ in range(count)]
        taken = [page for page in pages if page is not None]
        for page in taken:
            self._count(page, 1)
        return taken

    def hold(self, pages: Iterable[int]) -> None:
        """One more holder of each."""
        for page in pages:
            self._count(page, 1)

    def release(self, pages: Sequence[int]) -> None:
        """One holder less of each; a page without any is free."""
        for page in pages:
            self._count(page, -1)
            if self._holders[page] == 0:
                self._free.give_back(page)

    def _count(self, page: int, change: int) -> None:
        if page >= len(self._holders):
            self._holders.extend([0] * (max(page + 1, 2 * len(self._holders)) - len(self._holders)))
        self._holders[page] += change
        assert self._holders[page] >= 0, "page released more often than held"
