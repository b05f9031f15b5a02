"""How many requests may be under way at once: halved when a server is full, then grown again."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

GROWTH = 0.25
"""Places that one answer adds: four answers, one place."""


class Limit:
    """Places for requests of one event loop.

    Attributes:
        most: places there may be.
        now: places there are; its whole part counts.
    """

    def __init__(self, most: int) -> None:
        """`most` places, all free."""
        self.most, self.now = most, float(most)
        self._busy = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._deaf_until = 0.0
        self._stretched, self._since = 0.0, time.monotonic()

    def stretched(self) -> float:
        """Seconds since it was made, each counted as often as there are fewer places than there may be: where half of
        them are left, a second counts as two. A request that takes so many of these takes its share of all places."""
        moment = time.monotonic()
        self._stretched += (moment - self._since) * self.most / int(self.now)
        self._since = moment
        return self._stretched

    @asynccontextmanager
    async def place(self) -> AsyncIterator[float]:
        """Waits for a free place, first come first served, and holds it; gives the moment at which it was free."""
        await self._enter()
        try:
            yield time.monotonic()
        finally:
            self._leave()

    def full(self, began: float, asked: float = 0.0) -> None:
        """The server refused as full a request that began at `began`, and asked to wait so many seconds.

        Requests that were under way when the limit was halved say nothing new, nor does one within the time that the
        server asked for: together they halve it once.
        """
        if began >= self._deaf_until:
            self.stretched()
            self.now = max(1.0, self.now / 2)
            self._deaf_until = time.monotonic() + asked

    def answered(self) -> None:
        """The server answered a request."""
        self.stretched()
        self.now = min(float(self.most), self.now + GROWTH)
        self._wake()

    async def _enter(self) -> None:
        if not self._waiting and self._busy < int(self.now):
            self._busy += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave()
            raise

    def _leave(self) -> None:
        self._busy -= 1
        self._wake()

    def _wake(self) -> None:
        while self._waiting and self._busy < int(self.now):
            turn = self._waiting.popleft()
            if not turn.done():
                self._busy += 1
                turn.set_result(None)
