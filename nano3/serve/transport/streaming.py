"""Answers while the client listens: server-sent events, and work that ends when nobody listens any more."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from nano3.serve.transport.errors import ApiError, body_of

log = logging.getLogger(__name__)
CLIENT_GONE = 499
"""nginx's status for a client that hung up; nobody receives it, but the metrics count it."""
T = TypeVar("T")


def to_json(value: Any) -> bytes:
    """Compact JSON; NaN and infinities must not be in it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


class StalledError(RuntimeError):
    """A client that takes nothing more of its stream."""


class JsonAnswer(Response):
    """A JSON body that is encoded without a look at each value."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body."""
        return to_json(content)


class EventForm:
    """How a stream is written: OpenAI's chat chunks, ended by [DONE]."""

    end = b"data: [DONE]\n\n"

    def event(self, event: Any) -> bytes:
        """One event."""
        return b"data: " + to_json(event) + b"\n\n"

    def silence(self, comment: str) -> bytes:
        """What keeps the connection open while there is nothing to tell."""
        return b": " + comment.encode() + b"\n\n"

    def error(self, error: ApiError) -> bytes:
        """The last event of a stream that fails."""
        return self.event(body_of(error))


class NamedEvents(EventForm):
    """Events that have their type as name too; the last one ends the stream."""

    end = b""

    def event(self, event: Any) -> bytes:
        """One event."""
        return b"event: " + event["type"].encode() + b"\n" + super().event(event)


class EventStream(Response):
    """Server-sent events from a generator of objects, written in a form.

    A None from the generator becomes a sign of life, an ApiError an event with its body. When the client hangs up, or
    reads nothing for too long, the generator is ended at once. `close` is called at the end, whatever happened.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[Any],
        close: Callable[[], None],
        comment: Callable[[], str] = lambda: "keep-alive",
        *,
        patience: Callable[[], float | None] = lambda: None,
        form: EventForm | None = None,
    ) -> None:
        """Stream `events`; `patience` says how many seconds a client may take to read what is sent now."""
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._close, self._comment, self._patience = events, close, comment, patience
        self._form = form or EventForm()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end or the client goes."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await _first_of(self._send_all(self._limited(send)), _client_gone(receive))
        except StalledError as error:
            # Nothing can be told to a client that does not read; the server closes what was not completed.
            log.warning("%s", error)
        finally:
            self._close()

    def _limited(self, send: Send) -> Send:
        """`send` with a time limit: it waits as long as the client does not read."""

        async def limited(message: Message) -> None:
            try:
                async with asyncio.timeout(self._patience()):
                    await send(message)
            except TimeoutError as error:
                raise StalledError("a client stopped reading its stream and was hung up on") from error

        return limited

    async def _send_all(self, send: Send) -> None:
        try:
            async for event in self._events:
                text = self._form.silence(self._comment()) if event is None else self._form.event(event)
                await send({"type": "http.response.body", "body": text, "more_body": True})
        except ApiError as error:
            await send({"type": "http.response.body", "body": self._form.error(error), "more_body": True})
        await send({"type": "http.response.body", "body": self._form.end, "more_body": False})


async def while_connected(request: HttpRequest, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client hangs up. Raises ApiError (499) then."""
    done = await _first_of(work, _client_gone(request.receive))
    if done is None:
        raise ApiError(CLIENT_GONE, "the client hung up")
    return done


async def _client_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _first_of(work: Coroutine[Any, Any, T], end: Coroutine[Any, Any, None]) -> T | None:
    """Run both until one is done and cancel the other; what `work` returned, None where `end` came first."""
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(end)
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for other in (task, watch):
            other.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)
