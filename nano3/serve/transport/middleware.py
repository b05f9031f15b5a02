"""Around every route: API keys, the size of bodies, and the count of answers. Plain ASGI, so streams pass untouched."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
from collections.abc import Collection, Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nano3.serve.metrics import Metrics
from nano3.serve.transport.errors import ApiError, error_response

PROTECTED = ("/v1/", "/tokenize", "/detokenize", "/update_weights_from_disk", "/weight_info")
MOST_DISCARDED, DISCARD_SECONDS = 128 << 20, 10.0
"""How much of a body that is too large is read before its refusal."""
LARGE, LARGE_AT_ONCE = 1 << 20, 8
"""Bodies of more bytes than this are held in memory until their answers end: as many as eight of the largest."""


class ApiKeys:
    """Refuses requests to protected paths without a valid key (401)."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        # Digests are of one length, so that comparing tells nothing of a key.
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, then pass on."""
        if scope["type"] == "http" and scope["path"].startswith(PROTECTED) and not self._allows(Headers(scope=scope)):
            refusal = ApiError(
                401,
                "no valid API key; send it as `Authorization: Bearer KEY` or as `x-api-key: KEY`",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
            await error_response(refusal, scope["path"])(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _allows(self, headers: Headers) -> bool:
        kind, _, key = headers.get("authorization", "").partition(" ")
        given = [headers.get("x-api-key", ""), key.strip() if kind.lower() == "bearer" else ""]
        sent = [_digest(key.encode("latin-1")) for key in given]
        # All keys are compared, whichever fits.
        fits = [hmac.compare_digest(one, digest) for one in sent for digest in self._digests]
        return any(fits)


class BodyLimit:
    """Refuses bodies that are too large (413), by their declared length or as they arrive, and large ones while too
    many of them are in work (503)."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit = app, limit
        self._held = 0
        """Bytes of large bodies in work."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, then pass on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdecimal() and int(length) > self._limit:
            await _discard(receive)
            await error_response(self._refusal(), scope["path"])(scope, receive, send)
            return
        seen = held = 0

        async def counted() -> Message:
            nonlocal seen, held
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > LARGE:
                self._held += seen - held
                held = seen
            too_large = seen > self._limit
            if too_large or (held and self._held > LARGE_AT_ONCE * self._limit):
                if message.get("more_body", False):
                    await _discard(receive)
                raise self._refusal() if too_large else _BUSY
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            self._held -= held

    def _refusal(self) -> ApiError:
        return ApiError(
            413, f"the body is larger than {self._limit} bytes", code="body_too_large", headers={"Connection": "close"}
        )


async def _discard(receive: Receive) -> None:
    """Read the rest of a body, within limits: a connection closed on unread bytes is reset, and the answer lost."""
    left = MOST_DISCARDED
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS):
            while left > 0:
                message = await receive()
                if not message.get("more_body", False):
                    return
                left -= len(message.get("body", b""))


_BUSY = ApiError(
    503, "too many large requests at once; try again later", code="busy",
    headers={"Connection": "close", "Retry-After": "1"},
)  # fmt: skip


class HeadAsGet:
    """Answers HEAD as GET, without the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def headers_only(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self._app({**scope, "method": "GET"}, receive, headers_only)


class CountAnswers:
    """Counts answers by method, route and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Collection[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, then count."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            self._metrics.requests.labels(_known(scope["method"]), self._route(scope), str(status)).inc()

    def _route(self, scope: Scope) -> str:
        """The route's path. Any other path would make a series of its own, so those count as one."""
        if "route" in scope:
            return scope["route"].path
        return scope["path"] if scope["path"] in self._paths else "other"


def _known(method: str) -> str:
    return method if method in ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH") else "other"


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
