"""Many requests to one server at once: as many as it takes, tried again, until it is gone."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx2

from nano3.client.attempts import FULL, Attempts, Tries
from nano3.client.chat import read_chat
from nano3.client.limit import Limit
from nano3.client.replies import FORBIDDEN, REFUSED, is_filtered, is_passing, seconds_of
from nano3.client.server import KEY_NAMES, Address, Reply, connect_timeout, http_options
from nano3.config.errors import UserError

BROKEN_OFF = ("abort", "error")
"""Reasons to finish that servers (vLLM, SGLang, OpenRouter) give with status 200 and the beginning of an answer."""
ANSWERED = 2
"""Tries of a request that failed while the server answered others, after which the request is to blame."""
PROBE = [{"role": "user", "content": "Reply with the word yes."}]
PROBE_SECONDS, PROBE_TIMEOUT = 30.0, 60.0
"""Between two looks at whether a server answers a short request, and for its answer."""
QUIET_SECONDS, TOLD_SECONDS = 3.0, 10.0
"""Without an answer, after which a line says so; between two such lines."""
CHAT = "/v1/chat/completions"
FORM = "response_format"
"""Key of a request for an answer of a form, which not all servers take."""


class ServerGoneError(UserError):
    """Nothing was answered for as long as a server is waited for."""


class RefusedError(Exception):
    """The server answers others, but refuses this request, and would do so again."""

    def __init__(self, status: int, words: str, filtered: bool = False) -> None:
        """`words`: status and what the server says; `filtered`: it says that its provider does not let this through."""
        super().__init__(words)
        self.status, self.filtered = status, filtered


class FormRefusedError(Exception):
    """The server answers a short request, but not with this `response_format`; the words are its own."""


@dataclass
class Counts:
    """What was sent."""

    requests: int = 0
    """All tries and probes."""
    tried_again: int = 0
    full: int = 0
    """Refusals with 429."""


class AsyncServer(Address):
    """One server, asked by tasks of one event loop.

    A request that fails several times while others are answered is to blame itself. Where nothing else was answered in
    the meantime, a short request in its place (`PROBE`) decides: if that is answered twice, each time after so many
    failures, the request is to blame. A server that answers nothing is waited for until the deadline; a request that
    failed while it was away begins anew when it is back.

    Attributes:
        limit: how many requests are under way at once, at the most.
        counts: what was sent.
    """

    def __init__(
        self,
        url: str,
        api_key: str = "",
        *,
        concurrency: int = 32,
        timeout: float = 600.0,
        tries: Tries | None = None,
        key_names: str = KEY_NAMES,
        url_name: str = "--url",
        model_name: str = "--model",
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """
        Args:
            url: without /v1.
            api_key: sent as bearer token, and in no message.
            concurrency: requests under way at once, at the most.
            timeout: seconds until a whole reply must be there.
            tries: of one request; `deadline`: seconds without any answer after which the server is gone. None: five,
                and 900 s.
            key_names, url_name, model_name: where key, address and model come from, for people.
            sleep: waits before a further try.
            tell: is given a line when the server is silent.

        Raises:
            UserError: no address, or a key that cannot stand in a header.
        """
        super().__init__(url, api_key, key_names, url_name, model_name)
        options = http_options(url, api_key, key_names, proxies=True)
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=concurrency)
        try:
            self._http = httpx2.AsyncClient(**options, timeout=connect_timeout(timeout), limits=limits)
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, ValueError) as error:
            raise UserError(f"{url_name} {url}: no address of a server: {error}") from error
        self.limit, self.counts = Limit(concurrency), Counts()
        self._timeout, self._tries = timeout, tries or Tries(5, deadline=900.0, patient=True)
        self._sleep, self._tell, self._told = sleep, tell, -math.inf
        self._last_answer = -1.0
        self._silent: float | None = None  # since when nothing was answered, where a request failed since
        self._answered: set[str] = set()
        self._probes: dict[str, tuple[float, int]] = {}
        self._probing = asyncio.Lock()

    async def chat(self, body: dict[str, Any]) -> tuple[Any, float]:
        """The JSON that the server answers to a request for a chat completion, and the seconds that its tries held a
        place, waits between them aside, stretched where the limit was lowered (`Limit.stretched`). An answer without a
        message, or one that the server broke off, is damaged, and asked for again.

        Raises:
            NoAnswerError: no answer to this request, though the server answers.
            RefusedError: it refuses this request, though it answers others of this kind.
            FormRefusedError: it refuses all requests with this one's `response_format`, and would answer without it.
            ServerGoneError: nothing was answered until the deadline.
            UserError: it refuses all, as by a wrong key, model or parameter.
        """
        attempts, seconds = _Attempts(self._tries), 0.0
        begun = False
        while True:
            async with self.limit.place() as began:
                before = self.limit.stretched()
                if not begun:
                    attempts.begin()
                    begun = True
                reply = await self._tried(body, attempts)
                seconds += self.limit.stretched() - before
            if reply is not None:
                self._note_load(reply, began)
                answer = await self._read(reply, body, attempts)
                if answer is not None:
                    return answer, seconds
            self.counts.tried_again += 1
            await self._wait(attempts, body)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _tried(self, body: dict[str, Any], attempts: _Attempts) -> Reply | None:
        """The whole reply to one try; None, noted, where there is none."""
        try:
            return await self._sent(body, self._timeout)
        except (httpx2.HTTPError, TimeoutError) as error:
            attempts.broke(self.reason(error))
            return None

    async def _sent(self, body: dict[str, Any], timeout: float) -> Reply:
        self.counts.requests += 1
        async with asyncio.timeout(timeout):
            reply = await self._http.post(CHAT, json=body)
        return Reply(reply.status_code, reply.content, seconds_of(reply.headers.get("Retry-After")))

    def _note_load(self, reply: Reply, began: float) -> None:
        if reply.status == FULL:
            self.counts.full += 1
            self.limit.full(began, reply.asked)
        elif reply.status < 300:
            self.limit.answered()

    async def _read(self, reply: Reply, body: dict[str, Any], attempts: _Attempts) -> Any:
        """A reply's JSON; None, noted, where another try may bring a better one. Raises where none will."""
        if is_passing(reply.status):
            attempts.refused(reply.status, self.refusal(reply), reply.asked)
            return None
        if reply.status >= 300:
            await self._check_refusal(reply, body)
            attempts.refused(reply.status, self.refusal(reply))
            return None
        try:
            answer = reply.json()
            ended = read_chat(answer).finish_reason
        except ValueError as error:
            attempts.broke(f"the answer cannot be read: {error}")
            return None
        if ended in BROKEN_OFF:
            attempts.broke(f"the server broke the answer off (finish_reason {ended})")
            return None
        self._note_answer(body)
        return answer

    async def _wait(self, attempts: _Attempts, body: dict[str, Any]) -> None:
        """Wait before the next try; raise where there is to be none."""
        attempts.note_answered(self._last_answer)
        if attempts.is_over:
            await self._judge(attempts, body)
        deadline, now = self._tries.deadline, time.monotonic()
        if self._silent is None:
            self._silent = max(attempts.began, self._last_answer)
        silent = now - self._silent
        left = deadline - silent
        if left < 0:
            raise ServerGoneError(
                f"{self.url}: no answer for {deadline:g} s ({attempts.reason}); run the same command again when it "
                "answers: what was done is kept"
            )
        noticed = attempts.is_over or (attempts.n > 1 and silent >= QUIET_SECONDS)
        if noticed and now - self._told >= TOLD_SECONDS:
            self._told = now
            self._tell(f"{self.url}: no answer for {silent:.0f} s ({attempts.reason}); waiting for it, {left:.0f} s "
                       "more at the most")  # fmt: skip
        await self._sleep(min(attempts.polite_pause(), left + 0.01))

    async def _judge(self, attempts: _Attempts, body: dict[str, Any]) -> None:
        """As many tries failed as may: raise where the request is to blame, begin anew where the server was away and is
        back."""
        if attempts.answered >= ANSWERED:
            raise attempts.given_up()
        if self._last_answer <= attempts.began:
            if not is_answer(await self._probe(body)):
                await self._check_form(body, attempts.reason)
                return
            if attempts.probed:
                raise attempts.given_up()
            attempts.probed = True
        attempts.begin()

    async def _check_refusal(self, reply: Reply, body: dict[str, Any]) -> None:
        """Raise for a refusal that another try meets again, of this request alone or of all; return where neither is
        known. A 403 is of the key where a probe meets it too, else of this request: a filter of contents."""
        words = self.refusal(reply)
        if reply.status in REFUSED or reply.status == FORBIDDEN:
            known = reply.status != FORBIDDEN and _kind(body) in self._answered  # a key may lose its rights later
            status = 200 if known else await self._probe(body)
            if is_answer(status):
                self._silent = None
                raise RefusedError(reply.status, words, is_filtered(reply.body))
            if is_passing(status) or not status:
                return
        await self._check_form(body, words)
        self.check_way(reply, CHAT)
        raise UserError(f"{self.url}{CHAT} refuses ({words})")

    async def _check_form(self, body: dict[str, Any], words: str) -> None:
        """Raise where a server that fails a request would answer it without its form. What servers say when they refuse
        the form differs, so it is tried."""
        if FORM not in body or _kind(body) in self._answered:
            return
        if is_answer(await self._probe({key: value for key, value in body.items() if key != FORM})):
            raise FormRefusedError(words)

    async def _probe(self, body: dict[str, Any]) -> int:
        """Status of the answer to a short request of the same kind as one that fails; 0: none. Tasks that ask while it
        is under way share it, and for some time one that failed."""
        asked, kind = time.monotonic(), _kind(body)
        async with self._probing:
            ended, status = self._probes.get(kind, (-PROBE_SECONDS, 0))
            if ended > asked - (0.0 if is_answer(status) else PROBE_SECONDS):
                return status
            try:
                reply = await self._sent(body | {"messages": PROBE}, min(self._timeout, PROBE_TIMEOUT))
                status = reply.status
                if status < 300:
                    read_chat(reply.json())
                    self._note_answer(body)
            except (httpx2.HTTPError, TimeoutError):
                status = 0
            except ValueError as error:
                if not self._answered:
                    raise UserError(f"{self.url} answers, but not as an OpenAI-compatible server: {error}") from error
                status = 0
            self._probes[kind] = (time.monotonic(), status)
            return status

    def _note_answer(self, body: dict[str, Any]) -> None:
        self._last_answer, self._told, self._silent = time.monotonic(), -math.inf, None
        self._answered.add(_kind(body))


class _Attempts(Attempts):
    """Tries of one request among others.

    Attributes:
        answered: tries since whose failure before, or since the first began, the server answered something.
        probed: whether the server answered a probe after as many had failed as may.
    """

    answered, probed = 0, False
    _seen = 0.0

    def begin(self) -> None:
        """The first try begins now."""
        super().begin()
        self.answered, self._seen = 0, self.began

    def note_answered(self, last: float) -> None:
        """A try failed, and the server answered last, anything at all, at this moment."""
        self.answered += last > self._seen
        self._seen = time.monotonic()


def is_answer(status: int) -> bool:
    """Whether a probe was answered."""
    return 200 <= status < 300


def _kind(body: dict[str, Any]) -> str:
    """What requests have in common that a server refuses together: all but what they say and how long."""
    return repr(sorted((key, repr(value)) for key, value in body.items() if key not in ("messages", "max_tokens")))
