"""The application on a socket, with an end that lets accepted requests finish."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI

from nano3.config.errors import UserError
from nano3.serve.service import Service

FLUSH_SECONDS = 5
"""Time for the last bytes of answers to leave after the engine is done."""
BACKLOG = 2048
KEEP_ALIVE_SECONDS = 75
"""Idle connections are kept longer than common clients keep theirs (httpx, httpx2, openai: 5 s), so that the client
closes first: a request that meets a closing connection is lost."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Server(uvicorn.Server):
    """uvicorn without its own handling of signals, which would hang up on clients at once."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


def bind(host: str, port: int) -> socket.socket:
    """A listening address; port 0 takes a free one.

    Raises:
        UserError: the address is in use or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's delay (40 ms before the second part of an answer) off where the protocol is named.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    if os.name != "nt":  # there it would let two servers share a port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        wrong = "--port" if getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EACCES) else "--host"
        raise UserError(f"cannot listen on {host} port {port}: {reason.lower()}; choose another {wrong}") from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Where clients on this machine reach a bound socket."""
    address, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, str(address))
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(app: FastAPI, log_level: str = "warning") -> Server:
    """A server for `app`; run it with `serve(sockets=[...])`."""
    # To stderr, for stdout may carry JSON.
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    config = uvicorn.Config(
        app, log_config=None, log_level=log_level, access_log=log_level in ("info", "debug"), lifespan="on",
        backlog=BACKLOG, timeout_keep_alive=KEEP_ALIVE_SECONDS, timeout_graceful_shutdown=FLUSH_SECONDS,
        server_header=False, ws="none",
    )  # fmt: skip
    return Server(config)


def run(
    app: FastAPI, listener: socket.socket, *, log_level: str = "warning", on_ready: Callable[[str], None] | None = None
) -> None:
    """Serve until SIGTERM or Ctrl-C, then until accepted requests are done or `drain_seconds` are over.

    A second signal ends the process at once. To be called in the main thread.
    """
    asyncio.run(_run(app, listener, log_level, on_ready))


async def _run(app: FastAPI, listener: socket.socket, log_level: str, on_ready: Callable[[str], None] | None) -> None:
    server = make_server(app, log_level)
    stop = _Stop(app.state.service, server)
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        _on_signal(loop, number, stop.signal)
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    while not (server.started or serving.done()):
        await asyncio.sleep(0.01)
    if server.started and on_ready is not None:
        on_ready(url_of(listener))
    await serving


def _on_signal(loop: asyncio.AbstractEventLoop, number: int, handle: Callable[[int], None]) -> None:
    """Call `handle` in the loop when a signal comes; Windows' loop has no way of its own for that."""
    try:
        loop.add_signal_handler(number, handle, number)
    except NotImplementedError:
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(handle, number))


class _Stop:
    """What signals do: the first drains, the second quits."""

    def __init__(self, service: Service, server: uvicorn.Server) -> None:
        self._service, self._server = service, server
        self._draining: asyncio.Task[None] | None = None

    def signal(self, number: int) -> None:
        """Handle one signal, in the event loop."""
        if self._draining is not None:
            os._exit(128 + number)
        self._draining = asyncio.ensure_future(self._drain(number))

    async def _drain(self, number: int) -> None:
        thread, seconds = self._service.thread, self._service.settings.drain_seconds
        _say(f"{signal.Signals(number).name}: finishing {thread.unfinished} outputs, for {seconds:g} s at most; "
             "once more quits at once")  # fmt: skip
        if not await thread.drain(seconds):
            _say("time is over: the rest ends with an error")
        self._server.should_exit = True


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
