"""Prompts for a load: seeded random words of a wanted number of tokens, or the lines of a file."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from nano3.bench.serving_client import Prompt, Target
from nano3.config.errors import UserError

_WORDS = """
time year people way day man thing woman life child world school state family student group country problem
hand part place case week company system program question work government number night point home water room
mother area money story fact month lot right study book eye job word business issue side kind head house
service friend father power hour game line end member law car city community name president team minute idea
kid body information back parent face others level office door health person art war history party result
change morning reason research girl guy moment air teacher force education foot boy age policy music market
sense nation plan college interest death experience effect use class control field development role effort
rate heart drug show leader light voice wife police mind price report decision son view relationship town
road arm difference value building action season society tax director position player record paper space
ground form event official matter center couple site project base star table need court oil situation cost
industry figure street image phone data picture practice piece land product doctor wall worker news test
movie north love support technology
"""
WORDS = tuple(_WORDS.split())
TOKENS_A_WORD = 1.3
"""Estimate where the server cannot count tokens: usual for English words in byte-level vocabularies."""
ROUNDS = 4
"""Corrections of a prompt's length by the server's count."""
PARALLEL = 8
"""Counting requests under way at a time."""


@dataclass(frozen=True)
class Lengths:
    """How long prompts and answers are, in tokens."""

    prompt: int = 512
    """Mean of a prompt's own tokens."""
    output: int = 128
    """Mean of the answers."""
    spread: float = 0.5
    """Lengths are drawn evenly from mean * (1 - spread) to mean * (1 + spread)."""
    shared_prefix: int = 0
    """Tokens in front of every prompt that are the same for all, beside its own."""

    def draw(self, mean: int, rng: random.Random) -> int:
        """One length, at least 1."""
        return max(1, round(mean * rng.uniform(1 - self.spread, 1 + self.spread)))


class Counter:
    """Counts tokens by the server's /tokenize; by an estimate where it has none."""

    def __init__(self, target: Target, client: httpx2.AsyncClient) -> None:
        self.exact = True
        self._target, self._client = target, client
        self._turn = asyncio.Semaphore(PARALLEL)

    async def count(self, text: str) -> int:
        """Tokens of a text, without anything that the server adds."""
        if self.exact:
            async with self._turn:
                found = await self._ask(text)
            if found is not None:
                return found
            self.exact = False
        return round(len(text.split()) * TOKENS_A_WORD)

    async def _ask(self, text: str) -> int | None:
        body = {"model": self._target.model, "prompt": text, "add_special_tokens": False}
        try:
            response = await self._client.post("/tokenize", json=body)
            answer = response.raise_for_status().json()
            return int(answer["count"]) if "count" in answer else len(answer["tokens"])
        except (httpx2.HTTPError, ValueError, KeyError, TypeError):
            return None


async def random_prompts(target: Target, lengths: Lengths, n: int, seed: int) -> tuple[list[Prompt], list[str]]:
    """`n` prompts of random words, the same for the same seed and tokenizer, and notes on how exact they are."""
    rng = random.Random(seed)
    async with target.client() as client:
        counter = Counter(target, client)
        prefix = await _text(counter, lengths.shared_prefix, rng) if lengths.shared_prefix else ""
        # Drawn one after the other, so that the prompts do not depend on which count is answered first.
        drawn = [
            (lengths.draw(lengths.prompt, rng), lengths.draw(lengths.output, rng), rng.getrandbits(64))
            for _ in range(n)
        ]
        texts = await asyncio.gather(*(_text(counter, tokens, random.Random(own)) for tokens, _, own in drawn))
    notes = [] if counter.exact else [f"no /tokenize there: prompts sized by {TOKENS_A_WORD} tokens a word"]
    prompts = [
        Prompt(text=f"{prefix} {text}" if prefix else text, output_tokens=output)
        for text, (_, output, _) in zip(texts, drawn, strict=True)
    ]
    return prompts, notes


async def _text(counter: Counter, tokens: int, rng: random.Random) -> str:
    """Random words of about `tokens` tokens: never more than half a word off where the count is exact."""
    words = rng.choices(WORDS, k=max(1, round(tokens / TOKENS_A_WORD)))
    best, error = words, float("inf")
    for _ in range(ROUNDS):
        count = await counter.count(" ".join(words))
        if abs(count - tokens) < error:
            best, error = words, abs(count - tokens)
        change = round((tokens - count) * len(words) / max(1, count))
        if change == 0:
            break
        words = words + rng.choices(WORDS, k=change) if change > 0 else words[: max(1, len(words) + change)]
    return " ".join(best)


def read_prompts(path: Path, target: Target, lengths: Lengths, n: int, seed: int) -> list[Prompt]:
    """`n` prompts from the lines of a JSONL file in a seeded order, from the start again where it is shorter.

    A line is a string, or an object with `prompt` (a string) or `messages` (a list), and optionally `output_tokens`.

    Raises:
        UserError: a line is none of these, or the file has none.
    """
    lines = [line for line in path.read_text("utf-8").split("\n") if line.strip()]
    if not lines:
        raise UserError(f"{path} has no prompts: one JSON object with prompt or messages a line")
    found = [_parse(f"{path}, line {number}", line, target) for number, line in enumerate(lines, start=1)]
    rng = random.Random(seed)
    rng.shuffle(found)
    return [
        Prompt(text, messages, output or lengths.draw(lengths.output, rng))
        for text, messages, output in (found[i % len(found)] for i in range(n))
    ]


def _parse(place: str, line: str, target: Target) -> tuple[str, tuple[dict[str, Any], ...], int]:
    try:
        entry = json.loads(line)
    except ValueError:
        raise UserError(f"{place} is not JSON") from None
    entry = {"prompt": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict):
        raise UserError(f"{place}: give a string, or an object with prompt or messages")
    text, messages, output = entry.get("prompt"), entry.get("messages"), entry.get("output_tokens", 0)
    if not isinstance(output, int) or output < 0:
        raise UserError(f"{place}: output_tokens is {output!r}; it must be a whole number above 0")
    if isinstance(messages, list) and messages:
        if target.endpoint != "chat":
            raise UserError(f"{place} has messages: --endpoint completions needs a prompt")
        return "", tuple(messages), output
    if not isinstance(text, str) or not text:
        raise UserError(f"{place} has neither a prompt (text) nor messages (a list)")
    return text, (), output
