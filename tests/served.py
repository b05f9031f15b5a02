"""An application on a real server in a thread, which ends as soon as it is told to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import uvicorn.server
from fastapi import FastAPI

from nano3.serve.transport.server import bind, make_server, url_of


async def _sleep(seconds: float) -> None:
    await asyncio.sleep(min(seconds, 0.01))


# uvicorn looks each 0.1 s whether it is to end, and then whether its connections have: 0.2 s for each of many servers.
uvicorn.server.asyncio = SimpleNamespace(**vars(asyncio) | {"sleep": _sleep})  # pyright: ignore


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The URL of the running application."""
    listener = bind("127.0.0.1", 0)
    server = make_server(app)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        thread.join(0.01)
    try:
        yield url_of(listener)
    finally:
        server.should_exit = True
        thread.join(120)
        assert not thread.is_alive()
