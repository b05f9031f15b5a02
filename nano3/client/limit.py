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
        busy_seconds: seconds that all requests were under way, summed.
    """

    def __init__(self, most: int) -> None:
        """`most` places, all free."""
        self.most, self.now = most, float(most)
        self.busy_seconds = 0.0
        self._busy = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._deaf_until = 0.0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[float]:
        """Waits for a free place, first come first served, and holds it; gives the moment at which it was free."""
        await self._enter()
        began = time.monotonic()
        try:
            yield began
        finally:
            self.busy_seconds += time.monotonic() - began
            self._leave()

    def full(self, began: float, asked: float = 0.0) -> None:
        """The server refused as full a request that began at `began`, and asked to wait so many seconds.

        Requests that were under way when the limit was halved say nothing new, nor does one within the time that the
        server asked for: together they halve it once.
        """
        if began >= self._deaf_until:
            self.now = max(1.0, self.now / 2)
            self._deaf_until = time.monotonic() + asked

    def answered(self) -> None:
        """The server answered a request."""
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
