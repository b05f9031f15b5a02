"""What the routes share: the engine, its limits, and how requests run on it."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeVar, cast

from fastapi import Request as HttpRequest

from nano3.data.chat.encoder import ChatEncoder, template_for
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.protocol import GenerationEngine
from nano3.engine.request import Request, Update
from nano3.serve.engine_thread import (
    BadGrammarError,
    DrainingError,
    EngineFailedError,
    EngineThread,
    QueueFullError,
)
from nano3.serve.metrics import Metrics
from nano3.serve.settings import PROCESSED, Settings
from nano3.serve.stream import Stream
from nano3.serve.tokens import TokenTexts
from nano3.serve.transport.errors import ApiError

TURN_END = "<|im_end|>"
LARGE_BODY = 256 << 10
"""Bytes of a body whose planning takes a while."""
LAST_WORDS_SECONDS = 1.0
T = TypeVar("T")


class Service:
    """One engine under one name."""

    def __init__(self, engine: GenerationEngine, name: str, settings: Settings) -> None:
        self.name, self.settings = name, settings
        self.created = int(time.time())
        self.weights = {0: ""}
        """What trainers called each version of the weights; the first are those that the server was started with."""
        self.metrics = Metrics()
        self.thread = EngineThread(engine, max_waiting=settings.max_queue, observer=self.metrics.on_update)
        self.metrics.watch(self.thread)
        self.tokenizer: Tokenizer = engine.tokenizer
        template = template_for(engine.tokenizer)
        if settings.base_model:
            template.variables["enable_thinking"] = False  # what a request says goes before this
        self.chat = ChatEncoder(engine.tokenizer, template)
        self.texts = TokenTexts(engine.tokenizer)
        self.max_context, self.ids_limit = engine.max_context, engine.ids_limit
        self.most_characters = engine.max_context * max(map(len, engine.tokenizer.inner.get_vocab()))
        """Longer texts cannot fit, whatever their tokens."""
        self._large = asyncio.Semaphore(1)
        turn_end = engine.tokenizer.token_id(TURN_END)
        self.turn_end_ids = () if turn_end is None or turn_end in engine.eos_ids else (turn_end,)
        """Tokens that end a chat answer beside the engine's own ends of text."""

    def check_model(self, model: str | None) -> None:
        """Raises ApiError (404) for any name but the served one."""
        if model is not None and model != self.name:
            raise ApiError(
                404, f"the model {model!r} does not exist; this server has {self.name!r}", param="model",
                code="model_not_found",
            )  # fmt: skip

    def check_outputs(self, outputs: int) -> None:
        """Raises ApiError for more outputs than can wait (429) or than can ever wait (400)."""
        try:
            self.thread.ensure_room(outputs)
        except (QueueFullError, DrainingError, EngineFailedError, ValueError) as error:
            raise self.unavailable(error) from error

    async def plan(self, request: HttpRequest, function: Callable[..., T], *args: object) -> T:
        """The result of `function`, which runs in a thread. Those of large bodies run one after the other, for they
        would take all threads and leave none to others; one that has begun runs to its end.

        Raises:
            ApiError: as `function` does; a body nested too deeply (400).
        """
        large = len(await request.body()) > LARGE_BODY
        if large:
            await self._large.acquire()
        work = asyncio.ensure_future(asyncio.to_thread(function, *args))
        work.add_done_callback(lambda done: done.cancelled() or done.exception())
        if large:
            work.add_done_callback(lambda _: self._large.release())
        try:
            return await asyncio.shield(work)
        except RecursionError as error:
            raise ApiError(400, "the body is nested too deeply", code="invalid_value") from error

    def now(self) -> int:
        """The time for `created`, in seconds."""
        return int(time.time())

    def encode(self, text: str, add_special_tokens: bool | None, most_characters: int) -> list[int]:
        """Token ids of a plain prompt; one of more characters is refused (ApiError, 400).

        In front comes the beginning token where the tokenizer's configuration says `add_bos_token`. Where it does not,
        `add_special_tokens: true` puts the end-of-document token there, as nano3's pretraining does.
        """
        if len(text) > most_characters:
            raise ApiError(
                400, f"the prompt has {len(text)} characters; at most {most_characters} can fit", param="prompt",
                code="context_length_exceeded",
            )  # fmt: skip
        start: list[int] = []
        if add_special_tokens is not False and self.tokenizer.config.get("add_bos_token") is True:
            start = [self.tokenizer.bos_id]
        elif add_special_tokens:
            start = [self.tokenizer.eos_id]
        return start + self.tokenizer.encode(text, special=True)

    def cut(self, ids: tuple[int, ...], keep: int | None, max_tokens: int | None) -> tuple[int, ...]:
        """The last `keep` tokens of a prompt (vLLM's truncate_prompt_tokens): None for all, -1 for as many as fit."""
        if keep is None:
            return ids
        most = keep if keep >= 0 else max(1, self.max_context - (1 if max_tokens is None else max_tokens))
        return ids[-most:]

    def check_length(self, prompt_tokens: int, max_tokens: int | None, prompt_field: str, tokens_field: str) -> None:
        """Raises ApiError (400) where prompt and answer cannot fit; it names the field that is too large."""
        wanted = 1 if max_tokens is None else max_tokens
        param = prompt_field if prompt_tokens + min(wanted, 1) > self.max_context else tokens_field
        if prompt_tokens + wanted > self.max_context:
            asked = f" and {max_tokens} tokens of answer were asked for" if max_tokens is not None else ""
            raise ApiError(
                400, f"the context holds {self.max_context} tokens; the prompt has {prompt_tokens}{asked}",
                param=param, code="context_length_exceeded",
            )  # fmt: skip

    def unavailable(self, error: Exception, form: str | None = None) -> ApiError:
        """The answer for what `EngineThread.submit` raises; `form` is the field that sets the form of the output."""
        wait = {"Retry-After": str(self.settings.retry_after)}
        if isinstance(error, QueueFullError):
            return ApiError(429, f"{error}; try again later", code="queue_full", headers=wait)
        if isinstance(error, DrainingError):
            return ApiError(503, str(error), code="shutting_down", headers=wait)
        if isinstance(error, EngineFailedError):
            return ApiError(500, str(error), code="engine_failed")
        # The engine's own refusals begin with the field.
        named = next((name for name in ("logit_bias", "prompt") if str(error).startswith(f"{name}:")), None)
        param = form if isinstance(error, BadGrammarError) else named
        return ApiError(400, str(error), param=param, code="invalid_value")


def _processed(update: Update) -> Update:
    """The update with log-probabilities under the distribution that was drawn from."""
    return update._replace(tokens=tuple(t._replace(log_prob=t.sampled_log_prob) for t in update.tokens))


def service_of(request: HttpRequest) -> Service:
    """The service that a route belongs to (a FastAPI dependency)."""
    return cast(Service, request.app.state.service)


def new_id(prefix: str) -> str:
    """A fresh identifier, as `chatcmpl-...`."""
    return f"{prefix}-{uuid.uuid4().hex}"


class Generation:
    """Some requests that run for one HTTP request, under one time limit."""

    def __init__(self, service: Service, requests: Sequence[Request], form: str | None = None) -> None:
        """`form`: the field that sets the form of the output."""
        self.requests = list(requests)
        self._form = form
        self._service = service
        self._processed = service.settings.logprobs_mode == PROCESSED
        if self._processed and any(request.sampling.log_probs for request in requests):
            raise ApiError(
                400, f"this server reports {PROCESSED}, those of the chosen tokens alone; ask for no alternatives",
                param="logprobs", code="invalid_value",
            )  # fmt: skip
        self._streams: list[Stream] = []
        self._arrived = asyncio.Event()
        limit = service.settings.request_timeout
        self._deadline = None if limit is None else time.monotonic() + limit

    async def start(self) -> None:
        """Hand all requests in.

        Raises:
            ApiError: one of them can not run, or not now; then none does.
        """
        try:
            async with asyncio.timeout(self._left()):  # they wait while weights are replaced
                self._streams = await self._service.thread.submit_all(self.requests, self._arrived)
        except TimeoutError as error:
            raise self._time_up() from error
        except (QueueFullError, DrainingError, EngineFailedError, ValueError) as error:
            raise self._service.unavailable(error, self._form) from error

    async def updates(self, tick: float | None = None) -> AsyncIterator[tuple[int, Update] | None]:
        """(position of the request, update) until all have ended; None whenever `tick` seconds pass in silence.

        Raises:
            ApiError: the engine failed (500), the server ends (503), or time is up (504).
        """
        while True:
            self._arrived.clear()
            for position, stream in enumerate(self._streams):
                for update in stream.take():
                    if update.finish in ("error", "abort"):
                        raise self._ended(update)
                    yield position, _processed(update) if self._processed else update
            if not any(stream.open for stream in self._streams):
                return
            if not await self._wait(tick):
                yield None

    def patience(self) -> float:
        """Seconds that a client may take to read what is sent to it now; enough to be told that time is up."""
        left = float("inf") if self._deadline is None else self._deadline - time.monotonic()
        return min(max(left, LAST_WORDS_SECONDS), self._service.settings.stall_seconds)

    def progress(self) -> tuple[int, int]:
        """(prompt tokens computed, prompt tokens) of the requests that have said nothing yet."""
        known = [stream.progress for stream in self._streams if stream.progress and not stream.last_at]
        return sum(done for done, _ in known), sum(total for _, total in known)

    def close(self) -> None:
        """Drop what has not ended."""
        for stream in self._streams:
            stream.close()

    async def _wait(self, tick: float | None) -> bool:
        """Whether something arrived within the tick."""
        left = self._left()
        if left is not None and left <= 0:
            raise self._time_up()
        timeout = min((t for t in (tick, left) if t is not None), default=None)
        try:
            await asyncio.wait_for(self._arrived.wait(), timeout)
        except TimeoutError:
            return False
        return True

    def _left(self) -> float | None:
        """Seconds until time is up; None: no limit."""
        return None if self._deadline is None else self._deadline - time.monotonic()

    def _time_up(self) -> ApiError:
        limit = self._service.settings.request_timeout
        return ApiError(504, f"the answer was not complete within {limit:g} s", code="timeout")

    def _ended(self, update: Update) -> ApiError:
        thread = self._service.thread
        if thread.failure is not None:
            return ApiError(500, update.error, code="engine_failed")
        if thread.draining or not thread.ready:
            return self._service.unavailable(DrainingError(update.error or "the server is shutting down"))
        if update.dead_end:
            return ApiError(400, update.error, param=self._form, code="dead_end")
        return ApiError(500, update.error or "the request was dropped", code="engine_error")
