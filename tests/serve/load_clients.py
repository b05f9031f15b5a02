"""Many clients of one server: some read their answers, some hang up, some send what is no request."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

import httpx2

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SCHEMA = {
    "type": "object",
    "properties": {"room": {"enum": ["kitchen", "attic"]}, "level": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["room", "level"],
    "additionalProperties": False,
}
PLAIN = {"enable_thinking": False}
MIB = 1 << 20
WORDS = ("the", "lamp", "in", "old", "attic", "was", "on", "and", "then", "it", "rained", "for", "days", "over", "town")


def pool(seed: int, size: int) -> list[tuple[str, dict]]:
    """Different requests: long and short, greedy and seeded, with common beginnings, several outputs, grammars."""
    rng = random.Random(seed)
    words = rng.choices(WORDS, k=600)
    common = " ".join(words[:150])
    made = []
    for i in range(size):
        text = f"{i} " + " ".join(rng.choices(words, k=rng.choice((1, 4, 20, 80, 200))))
        if i % 3 == 0:
            text = f"{common} {text}"
        body = {"max_tokens": rng.randint(3, 24), "seed": i, "temperature": rng.choice((0, 0, 0.7, 1.2))}
        if i % 2:
            body |= {"messages": [{"role": "user", "content": text}], "logprobs": True} | PLAIN
        else:
            body |= {"prompt": text, "logprobs": 0}
        body |= rng.choice(
            (
                {}, {}, {"ignore_eos": True}, {"n": 2}, {"stop": ["e", "th"]}, {"top_p": 0.8, "top_k": 20},
                {"repetition_penalty": 1.3, "frequency_penalty": 0.5},
                {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
                 "max_tokens": 60},
            )
        )  # fmt: skip
        made.append((CHAT if i % 2 else COMPLETIONS, body))
    return made


def malformed(rng: random.Random) -> tuple[str, str, dict]:
    """(method, path, arguments of httpx2) of a request that must be answered 4xx."""
    chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
    wrong = [
        {"content": b"{"}, {"content": b""}, {"content": b"\xff\xfe\x00"}, {"content": b"[" * 10_000}, {"json": []},
        {"json": {}}, {"json": chat | {"messages": []}}, {"json": chat | {"messages": "x"}},
        {"json": chat | {"messages": [{"role": "king", "content": "x"}]}}, {"json": chat | {"max_tokens": -1}},
        {"json": chat | {"max_tokens": 10**7}}, {"json": chat | {"model": "other"}},
        {"json": chat | {"temperature": "hot"}}, {"json": chat | {"n": 10**6}}, {"json": chat | {"top_p": 0}},
        {"json": chat | {"guided_regex": "(("}}, {"json": chat | {"tool_choice": "required"}},
        {"json": chat | {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}}},
        {"json": chat | {"logit_bias": {"x": 1}}}, {"json": chat | {"stop": [""]}},
        {"json": chat | {"messages": [{"role": "user", "content": "long " * 20_000}]}},
        {"content": b" " * (2 * MIB)},
    ]  # fmt: skip
    if rng.random() < 0.15:
        return rng.choice(
            [("GET", CHAT, {}), ("DELETE", "/v1/models", {}), ("POST", "/v1/nothing", {"json": chat}),
             ("POST", COMPLETIONS, {"json": {"prompt": []}}), ("POST", COMPLETIONS, {"json": {"prompt": [2**40]}})]
        )  # fmt: skip
    return "POST", CHAT, rng.choice(wrong)


@dataclass
class Answer:
    """One output, however it came."""

    text: str = ""
    finish: str = ""
    tokens: list[str] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)

    def add(self, choice: dict) -> None:
        """Take a choice of an answer, or of a chunk, in."""
        message = choice.get("message") or choice.get("delta") or choice
        self.text += (message.get("reasoning") or "") + (message.get("content") or message.get("text") or "")
        self.finish = choice.get("finish_reason") or self.finish
        log_probs = choice.get("logprobs") or {}
        if "content" in log_probs:
            self.tokens += [entry["token"] for entry in log_probs["content"]]
            self.log_probs += [entry["logprob"] for entry in log_probs["content"]]
        else:
            self.tokens += log_probs.get("tokens", [])
            self.log_probs += log_probs.get("token_logprobs", [])

    def differs(self, other: Answer, tolerance: float = 1e-4) -> bool:
        """Whether this is another answer."""
        same = (self.text, self.finish, self.tokens) == (other.text, other.finish, other.tokens)
        pairs = zip(self.log_probs, other.log_probs, strict=False)
        return not same or any(abs(a - b) > tolerance for a, b in pairs)


class RefusedError(Exception):
    """The server said 429 or 503."""

    def __init__(self, response: httpx2.Response) -> None:
        super().__init__(response.status_code)
        self.response = response


async def whole(client: httpx2.AsyncClient, path: str, body: dict) -> list[Answer]:
    """The outputs of a request, in one piece."""
    response = await client.post(path, json=body)
    _check(response)
    answers = [Answer() for _ in range(body.get("n", 1))]
    for choice in response.json()["choices"]:
        answers[choice["index"]].add(choice)
    return answers


async def streamed(client: httpx2.AsyncClient, path: str, body: dict, leave_after: int | None = None) -> list[Answer]:
    """The same from a stream; with `leave_after` the client hangs up after so many events."""
    answers = [Answer() for _ in range(body.get("n", 1))]
    events = 0
    async with client.stream("POST", path, json=body | {"stream": True}) as response:
        if response.status_code != 200:
            await response.aread()
        _check(response)
        async for line in response.aiter_lines():
            if events == leave_after:
                return []
            if line == "data: [DONE]":
                return answers
            if line.startswith("data: "):
                events += 1
                event = json.loads(line[6:])
                assert "error" not in event, event
                for choice in event["choices"]:
                    answers[choice["index"]].add(choice)
    raise AssertionError("the stream ended without [DONE]")


def _check(response: httpx2.Response) -> None:
    if response.status_code in (429, 503):
        raise RefusedError(response)
    assert response.status_code == 200, response.text


class Load:
    """Clients that work through a number of jobs; what came of them is counted."""

    def __init__(self, url: str, requests: list[tuple[str, dict]], expected: list[list[Answer]], seed: int) -> None:
        self.url, self.requests, self.expected = url, requests, expected
        self.counts: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.wrong: list[str] = []
        self._rng = random.Random(seed)

    async def run(self, jobs: int, clients: int) -> None:
        """Do `jobs` jobs with so many clients at once."""
        left = iter(range(jobs))
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=clients)
        async with httpx2.AsyncClient(base_url=self.url, timeout=180, limits=limits, trust_env=False) as client:

            async def user() -> None:
                for _ in left:
                    await self._job(client)

            await asyncio.gather(*(user() for _ in range(clients)))

    async def _job(self, client: httpx2.AsyncClient) -> None:
        kind = self._rng.choices(("whole", "streamed", "hang up", "cut off", "malformed"), (35, 30, 15, 8, 12))[0]
        number = self._rng.randrange(len(self.requests))
        self.counts[kind] += 1
        try:
            if kind == "malformed":
                await self._malformed(client, malformed(self._rng))
            elif kind == "cut off":
                with suppress(TimeoutError, RefusedError):
                    await asyncio.wait_for(whole(client, *self.requests[number]), self._rng.random() / 2)
            else:
                await self._until_taken(client, kind, number)
        except Exception as error:
            self.wrong.append(f"request {number} ({kind}): {error!r}")

    async def _until_taken(self, client: httpx2.AsyncClient, kind: str, number: int) -> None:
        path, body = self.requests[number]
        leave_after = self._rng.randrange(6) if kind == "hang up" else None
        while True:
            try:
                if kind == "whole":
                    answers = await whole(client, path, body)
                else:
                    answers = await streamed(client, path, body, leave_after)
                break
            except RefusedError as refused:
                self.counts["refused"] += 1
                if refused.response.status_code != 429 or int(refused.response.headers["retry-after"]) < 1:
                    self.wrong.append(f"refused with {refused.response.status_code}")
                await asyncio.sleep(0.05 + self._rng.random() / 2)
        for answer, alone in zip(answers, self.expected[number], strict=False):
            if kind != "hang up" and answer.differs(alone):
                self.wrong.append(f"request {number} ({kind}): {answer} is not {alone}")

    async def _malformed(self, client: httpx2.AsyncClient, request: tuple[str, str, dict]) -> None:
        method, path, arguments = request
        headers = {"content-type": "application/json"} if "content" in arguments else {}
        try:
            response = await client.request(method, path, headers=headers, **arguments)
        except httpx2.HTTPError as error:
            self.wrong.append(f"{method} {path} {str(arguments)[:80]}: {error!r}")
            return
        self.statuses[response.status_code] += 1
        if not 400 <= response.status_code < 500 or "error" not in response.json():
            self.wrong.append(f"{method} {path} {str(arguments)[:80]}: {response.status_code} {response.text[:200]}")
