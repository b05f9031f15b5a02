"""Many requests to a server at once for lm-eval's API models, with one account of a server that goes away.

The harness's own way starts a task for each request, and lets every one of them fail for itself.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import aiohttp

from nano3.client.replies import is_passing, pause, seconds_of
from nano3.config.errors import UserError
from nano3.eval.prompt import ServerGone

T = TypeVar("T")


class AnyType(aiohttp.ClientResponse):
    """An answer that is read as JSON whatever the server calls it."""

    async def json(self, **_: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The body."""
        return await super().json(content_type=None)


async def ask_all(ask: Callable[[int], Awaitable[T]], n: int, at_once: int, tries: int, url: str) -> list[T]:
    """The answers to requests 0 to `n` - 1, in their order. What is under way is dropped when one fails for good.

    Args:
        ask: sends a request.
        n: number of requests.
        at_once: most requests under way.
        tries: of each request, with 1, 2, 4, ... seconds between them, or what the server asks for, at most a minute.
        url: of the server, for people.

    Raises:
        UserError: the server refuses a request.
        ServerGone: a request failed in every try.
    """
    answers: dict[int, T] = {}
    told: set[int] = set()
    left = iter(range(n))

    async def work() -> None:
        for index in left:
            answers[index] = await _try(lambda index=index: ask(index), tries, url, told)
            told.clear()

    workers = [asyncio.create_task(work()) for _ in range(min(at_once, n))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return [answers[index] for index in range(n)]


async def _try(ask: Callable[[], Awaitable[T]], tries: int, url: str, told: set[int]) -> T:
    """One request's answer; `told` has the tries after which a line was printed already, for other requests too."""
    for attempt in range(1, tries + 1):
        try:
            return await ask()
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            reason = _reason(error)
            asked = seconds_of((getattr(error, "headers", None) or {}).get("retry-after"))
            status = getattr(error, "status", None)
            if isinstance(status, int) and status >= 400 and not is_passing(status):
                raise UserError(f"{url} refuses a request: {reason}") from error
        if attempt == tries:
            break
        seconds = pause(attempt - 1, asked)
        if attempt not in told:
            told.add(attempt)
            print(f"{url}: {reason}; trying again in {seconds:g} s", file=sys.stderr, flush=True)
        await asyncio.sleep(seconds)
    raise ServerGone(f"{url} does not answer ({reason}, {tries} tries)")


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return f"HTTP {status} {getattr(error, 'message', '')}".strip()
    number = getattr(getattr(error, "os_error", error), "errno", None)  # of aiohttp's connector errors
    if isinstance(number, int) and number > 0:
        return os.strerror(number)
    return " ".join(str(error).split())[:300] or type(error).__name__
