"""One request to an OpenAI-compatible server, streamed and timed."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import httpx2

from nano3.client.replies import error_text, without_key
from nano3.client.server import Server, http_options
from nano3.config.errors import UserError

PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
OPTIONAL = ("ignore_eos", "stream_options")
"""What not every server knows; left out, in this order, when a server refuses the warm-up request."""


@dataclass(frozen=True)
class Prompt:
    """What one request asks."""

    text: str = ""
    messages: tuple[dict[str, Any], ...] = ()
    """A conversation in place of the text (chat endpoint only)."""
    output_tokens: int = 128
    """Most new tokens; exactly so many where the server knows `ignore_eos`."""


@dataclass(frozen=True)
class Target:
    """A server, and how to speak to it."""

    url: str
    """Without /v1."""
    endpoint: str = "chat"
    """chat or completions."""
    model: str = ""
    api_key: str = ""
    timeout: float = 600.0
    """Seconds that one request may take in all."""
    options: tuple[str, ...] = OPTIONAL

    def __post_init__(self) -> None:
        if self.endpoint not in PATHS:
            raise UserError(f"--endpoint is {self.endpoint!r}; it must be chat or completions")

    def body(self, prompt: Prompt) -> dict[str, Any]:
        """The JSON body of a request."""
        extras = {"ignore_eos": True, "stream_options": {"include_usage": True}}
        asked: dict[str, Any] = {"prompt": prompt.text}
        if self.endpoint == "chat":
            asked = {"messages": list(prompt.messages) or [{"role": "user", "content": prompt.text}]}
        body = {"model": self.model, **asked, "max_tokens": prompt.output_tokens, "stream": True}
        return body | {name: extras[name] for name in self.options}

    def client(self) -> httpx2.AsyncClient:
        """A client with as many connections as are asked for; a proxy of the environment is not used."""
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        return httpx2.AsyncClient(**http_options(self.url, self.api_key), timeout=self.timeout, limits=limits)


@dataclass
class Sample:
    """What one request came to; times in seconds on `time.perf_counter`."""

    start: float
    end: float = 0.0
    chunks: list[float] = field(default_factory=list)
    """When each piece of output arrived."""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    """Counts as the server reports them; None where it does not."""
    finish: str = ""
    done: bool = False
    """The stream said [DONE]."""
    error: str = ""
    """Kind of failure, in a few words; empty when the answer is whole."""
    detail: str = ""
    """What the server said about it."""

    @property
    def first_token(self) -> float | None:
        """Seconds until the first output."""
        return self.chunks[0] - self.start if self.chunks else None

    @property
    def gaps(self) -> list[float]:
        """Seconds between pieces of output."""
        return [after - before for before, after in pairwise(self.chunks)]

    @property
    def tokens(self) -> int:
        """Output tokens; pieces of output where the server reports no count."""
        return len(self.chunks) if self.output_tokens is None else self.output_tokens


async def send(client: httpx2.AsyncClient, target: Target, prompt: Prompt) -> Sample:
    """Send one request and read its stream to the end; a failure is in the sample, never raised."""
    sample = Sample(start=time.perf_counter())
    try:
        path, body = PATHS[target.endpoint], target.body(prompt)
        async with asyncio.timeout(target.timeout), client.stream("POST", path, json=body) as response:
            if response.status_code == httpx2.codes.OK:
                await _read(response, sample)
            else:
                sample.error = f"HTTP {response.status_code}"
                sample.detail = error_text(await response.aread(), target.api_key)
    except (httpx2.TimeoutException, TimeoutError):
        sample.error = "timed out"
    except httpx2.ConnectError as error:
        sample.error, sample.detail = "cannot connect", str(error)
    except httpx2.HTTPError as error:
        sample.error, sample.detail = "connection broke", str(error)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        sample.error, sample.detail = "not an OpenAI stream", f"{type(error).__name__}: {error}"
    sample.detail = without_key(sample.detail, target.api_key)
    sample.end = time.perf_counter()
    return sample


async def _read(response: httpx2.Response, sample: Sample) -> None:
    """Take the events of a stream into the sample."""
    first_event: float | None = None
    async for event in _events(response):
        now = time.perf_counter()
        if "error" in event:
            sample.error = "error in the stream"
            sample.detail = str((event["error"] or {}).get("message", event["error"]))
            return
        if first_event is None:
            first_event = now
        if event.get("usage"):
            _take_usage(sample, event["usage"])
        for choice in event.get("choices", ()):
            if _has_output(choice):
                sample.chunks.append(now)
            sample.finish = choice.get("finish_reason") or sample.finish
    sample.done = True
    if not sample.finish:
        sample.error = "stream ended early"
    elif not sample.chunks and first_event is not None:
        # Tokens without any visible text: the first event is the nearest to a first token.
        sample.chunks.append(first_event)


async def _events(response: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if not line.startswith("data:"):
            continue
        data = line[len("data:") :].strip()
        if data == "[DONE]":
            return
        yield json.loads(data)


def _has_output(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta") or {}
    said = (choice.get("text"), *(delta.get(key) for key in ("content", "reasoning", "reasoning_content")))
    return any(said) or bool(delta.get("tool_calls"))


def _take_usage(sample: Sample, usage: dict[str, Any]) -> None:
    sample.prompt_tokens = usage.get("prompt_tokens")
    sample.output_tokens = usage.get("completion_tokens")
    sample.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")


def find_model(target: Target) -> Target:
    """The target with a model name: the given one, else the first that the server lists.

    Raises:
        UserError: the server cannot be reached, refuses the key, or lists no model.
    """
    if target.model:
        return target
    server = Server(target.url, target.api_key, timeout=target.timeout)
    try:
        return replace(target, model=server.find_model()[0])
    finally:
        server.close()


async def settle_options(target: Target, prompt: Prompt) -> tuple[Target, list[str]]:
    """A first request, to learn which optional settings the server takes: the target with those, and notes.

    Raises:
        UserError: the server fails the request for another reason.
    """
    notes: list[str] = []
    async with target.client() as client:
        while True:
            sample = await send(client, target, prompt)
            refused = sample.error in ("HTTP 400", "HTTP 422")
            if not sample.error or not (refused and target.options):
                break
            notes.append(_NOTES[target.options[0]])
            target = replace(target, options=target.options[1:])
    if sample.error:
        path = target.url + PATHS[target.endpoint]
        raise UserError(
            f"{path}: the first request failed: {sample.error}" + (f": {sample.detail}" * bool(sample.detail))
        )
    if sample.output_tokens is None:
        notes.append("the server reports no usage: output tokens are counted as pieces of the stream")
    return target, notes


_NOTES = {
    "ignore_eos": "the server does not take ignore_eos: answers may be shorter than asked",
    "stream_options": "the server does not take stream_options",
}


def error_kinds(samples: list[Sample]) -> dict[str, int]:
    """How often each kind of failure happened, most frequent first."""
    return dict(Counter(sample.error for sample in samples if sample.error).most_common())
