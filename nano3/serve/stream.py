"""The updates of one request on their way from the engine's thread to its reader."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable

from nano3.engine.request import Request, Update


class Stream:
    """The updates of one request, read in the event loop that submitted it."""

    def __init__(self, request: Request, abort: Callable[[str], None], arrived: asyncio.Event | None = None) -> None:
        """`abort`: drops a request by its id; `arrived`: set whenever an update comes."""
        self.request = request
        self.loop = asyncio.get_running_loop()
        self.accepted: asyncio.Future[None] = self.loop.create_future()
        self.open = set(range(request.n))
        """Outputs that have not ended, as the reader knows."""
        self.progress: tuple[int, int] | None = None
        """(prompt tokens computed, prompt tokens) while nothing has come out."""
        self.submitted = time.perf_counter()
        self.last_at: dict[int, float] = {}
        """When the newest token of each output came."""
        self.prompt_tokens = len(request.prompt)
        self.produced: Counter[int] = Counter()
        """Tokens so far of each output."""
        self._abort = abort
        self._updates: deque[Update] = deque()
        self._arrived = arrived or asyncio.Event()

    def take(self) -> list[Update]:
        """The updates that came since the last call."""
        updates = list(self._updates)
        self._updates.clear()
        return updates

    async def __aiter__(self) -> AsyncIterator[Update]:
        while self.open or self._updates:
            for update in self.take():
                yield update
            if self.open and not self._updates:
                self._arrived.clear()
                await self._arrived.wait()

    def close(self) -> None:
        """Drop what is unfinished; before the engine's next step it holds nothing of this request."""
        if self.open:
            self._abort(self.request.id)

    def deliver(self, update: Update) -> bool:
        """Take an update in, in the event loop; whether anybody still waits for it."""
        if update.index not in self.open:
            return False
        if update.finish is not None:
            self.open.discard(update.index)
        self._updates.append(update)
        self._arrived.set()
        return True
