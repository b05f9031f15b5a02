"""Runs the prompts of `nano3 generate`: as text, as one JSON object, or as a JSON line each."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nano3.chat.answer import CHAT_TOKENS, PLAIN_TOKENS, no_answer
from nano3.chat.prefill import PrefillProgress
from nano3.chat.prompts import Encoded, Prompt, encode_chat, encode_plain
from nano3.config.errors import UserError
from nano3.engine.output import Output
from nano3.engine.request import Request, Sampling, ThinkingBudget, Token, Update

if TYPE_CHECKING:
    from nano3.engine.protocol import GenerationEngine


DONE, CUT_SHORT, FAILED = 0, 1, 2
"""Exit codes: an output was cut off before the form that was asked for was whole; a prompt could not be run."""


@dataclass(frozen=True)
class Job:
    """An open engine, and how all prompts are to be continued."""

    engine: GenerationEngine
    model: str
    sampling: Sampling
    n: int = 1
    raw: bool = False
    thinking: bool = True
    thinking_budget: int | None = None
    load_s: float = 0.0
    _told: list[str] = field(default_factory=list)

    def encode(self, prompt: Prompt) -> Encoded:
        """The prompt's token ids."""
        if prompt.messages is None:
            return encode_plain(self.engine.tokenizer, prompt, self.raw)
        return encode_chat(self.engine.tokenizer, prompt.messages, self.thinking)

    def request(self, request_id: str, encoded: Encoded) -> Request:
        """The engine's request for an encoded prompt."""
        chat, s = encoded.thinking_open is not None, self.sampling
        room = self.engine.max_context - len(encoded.ids)
        self._tell_room(room)
        most = min(CHAT_TOKENS if chat else PLAIN_TOKENS, room)
        s = replace(s, max_tokens=max(most, 1) if s.max_tokens is None else s.max_tokens, stop_ids=encoded.stop_ids)
        if chat and encoded.thinking_open:
            grammar = s.grammar and replace(s.grammar, after_thinking=True)
            budget = self.thinking_budget
            s = replace(s, grammar=grammar, thinking=None if budget is None else ThinkingBudget(budget))
        return Request(request_id, encoded.ids, s, self.n, encoded.cache_at)

    def _tell_room(self, room: int) -> None:
        """Say once that fewer tokens fit than were asked for. (A prompt without any room is an error of its own.)"""
        wanted = self.sampling.max_tokens or 0
        if wanted > room > 0 and not self._told:
            self._told.append(f"--max-tokens {wanted}: the context of {self.engine.max_context} tokens has room for "
                              f"{room} after the prompt")  # fmt: skip
            print(self._told[0], file=sys.stderr, flush=True)


@dataclass
class Timing:
    """Seconds since the requests were handed in."""

    start: float = field(default_factory=time.perf_counter)
    first: float | None = None

    def saw_token(self) -> None:
        """Remember when the first token came."""
        if self.first is None:
            self.first = time.perf_counter() - self.start

    def facts(self, job: Job, prompt_tokens: int, output_tokens: int) -> dict[str, Any]:
        """Seconds and speeds as the JSON tells them."""
        total = time.perf_counter() - self.start
        first = total if self.first is None else self.first
        decoding = output_tokens > 1 and total > first
        return {
            "load_s": round(job.load_s, 4),
            "first_token_s": round(first, 4),
            "total_s": round(total, 4),
            "prompt_tokens_per_s": round(prompt_tokens / max(first, 1e-9), 1),
            "output_tokens_per_s": round((output_tokens - 1) / (total - first), 1) if decoding else None,
        }


def run_text(job: Job, prompt: Prompt) -> int:
    """Print the text of one prompt's outputs as it is made, thinking on stderr; several outputs come one after the
    other, each under a line that numbers it (on stderr). Returns DONE or CUT_SHORT."""
    encoded = job.encode(prompt)
    request = job.request("generate", encoded)
    writers = [TextWriter(encoded.thinking_open, live=i == 0) for i in range(job.n)]
    shown = 0
    if job.n > 1:
        print(f"output 1 of {job.n}", file=sys.stderr)
    outputs = [Output(i) for i in range(job.n)]
    for update in updates(job.engine, [request]):
        outputs[update.index].add(update)
        writers[update.index].add(update)
        while shown < job.n and writers[shown].ended:
            shown += 1
            if shown < job.n:
                print(f"output {shown + 1} of {job.n}", file=sys.stderr)
                writers[shown].go_live()
    return _told(job, [is_cut_short(job, encoded, output) for output in outputs])


class TextWriter:
    """Writes one output: the answer to stdout, thinking to stderr; holds both back until it may."""

    def __init__(self, thinking_open: bool | None, live: bool) -> None:
        from nano3.data.chat.parsing.output_parser import OutputParser

        plain = thinking_open is None
        self._parser = None if plain else OutputParser(None, thinking_open=bool(thinking_open), parse_tools=False)
        self._held: list[tuple[Any, str]] = []
        self._live = live
        self._last = {sys.stdout: "\n", sys.stderr: "\n"}
        self._written = {sys.stdout: False, sys.stderr: False}
        self._tokens = 0
        self.ended = False

    def add(self, update: Update) -> None:
        """Take in an update and write what it adds.

        Raises:
            UserError: the engine gave up.
        """
        if update.finish == "error":
            raise UserError(update.error or "the engine failed")
        self._tokens += len(update.tokens)
        for stream, text in self._parts(update):
            self._write(stream, text)
        if update.finish is not None:
            self._end(update.finish == "length")

    def _end(self, cut_off: bool) -> None:
        for stream in (sys.stderr, sys.stdout):
            self._end_line(stream)
        if self._parser is not None and not self._written[sys.stdout]:
            self._emit(sys.stderr, no_answer(self._written[sys.stderr], cut_off, self._tokens) + "\n")
        self.ended = True

    def go_live(self) -> None:
        """Write what was held back, and from now on at once."""
        self._live = True
        held, self._held = self._held, []
        for stream, text in held:
            self._emit(stream, text)

    def _parts(self, update: Update) -> Iterator[tuple[Any, str]]:
        if self._parser is None:
            yield sys.stdout, update.text
            return
        deltas = self._parser.push(update.text) if update.text else []
        for delta in [*deltas, *(self._parser.finish() if update.finish is not None else [])]:
            yield sys.stderr, delta.reasoning
            yield sys.stdout, delta.content

    def _write(self, stream: Any, text: str) -> None:
        if not text:
            return
        if stream is sys.stdout:
            self._end_line(sys.stderr)
        self._last[stream] = text[-1]
        self._written[stream] |= not text.isspace()
        self._emit(stream, text)

    def _end_line(self, stream: Any) -> None:
        if self._last[stream] != "\n":
            self._last[stream] = "\n"
            self._emit(stream, "\n")

    def _emit(self, stream: Any, text: str) -> None:
        if not self._live:
            self._held.append((stream, text))
            return
        stream.write(text)
        stream.flush()


def run_json(job: Job, prompt: Prompt) -> int:
    """Print one JSON object with all outputs of one prompt. Returns DONE, CUT_SHORT or FAILED."""
    encoded = job.encode(prompt)
    timing = Timing()
    outputs = [Output(i) for i in range(job.n)]
    for update in updates(job.engine, [job.request("generate", encoded)]):
        if update.tokens:
            timing.saw_token()
        outputs[update.index].add(update)
    facts = result(job, encoded, outputs)
    tokens = facts["usage"]
    timings = timing.facts(job, tokens["prompt_tokens"] - tokens["cached_tokens"], tokens["completion_tokens"])
    print(json.dumps({"model": job.model, **facts, "timings": timings}, ensure_ascii=False))
    if any(output.finish == "error" for output in outputs):
        return FAILED
    return _told(job, [is_cut_short(job, encoded, output) for output in outputs])


def run_lines(job: Job, prompts: Sequence[Prompt]) -> int:
    """Print a JSON line for each prompt when its last output has ended; a prompt that cannot run gets a line with
    its error. Returns DONE, CUT_SHORT or FAILED."""
    encoded: dict[str, Encoded] = {}
    outputs: dict[str, list[Output]] = {}
    failed, cut_short = False, list[bool]()
    for i, prompt in enumerate(prompts):
        try:
            encoded[str(i)] = job.encode(prompt)
            job.engine.add(job.request(str(i), encoded[str(i)]))
            outputs[str(i)] = [Output(j) for j in range(job.n)]
        except ValueError as error:
            failed = True
            _print_line(i, prompt, {"error": str(error)})
    for update in steps(job.engine, sum(map(len, outputs.values()))):
        mine = outputs[update.request_id]
        mine[update.index].add(update)
        if all(output.finish is not None for output in mine):
            failed |= any(output.finish == "error" for output in mine)
            cut_short += [is_cut_short(job, encoded[update.request_id], output) for output in mine]
            index = int(update.request_id)
            _print_line(index, prompts[index], result(job, encoded[update.request_id], mine))
            del outputs[update.request_id]
    code = _told(job, cut_short)
    return FAILED if failed else code


def is_cut_short(job: Job, encoded: Encoded, output: Output) -> bool:
    """Whether an output of a form reached its most tokens before the form was whole."""
    grammar = job.sampling.grammar
    if grammar is None or output.finish != "length":
        return False
    from nano3.engine.grammar.masks import is_whole

    thinking = encoded.thinking_open
    return not is_whole(grammar, output.text if thinking is None else _parts(output.text, thinking)["content"])


def _told(job: Job, cut_short: Sequence[bool]) -> int:
    """Say of outputs that were cut before their form was whole that they were; the exit code."""
    count = sum(cut_short)
    if not count:
        return DONE
    grammar = job.sampling.grammar
    what = "a match of the pattern" if grammar is not None and grammar.kind == "regex" else "whole JSON"
    which = "the output was" if len(cut_short) == 1 else f"{count} of {len(cut_short)} outputs were"
    most = job.sampling.max_tokens
    limit = f"--max-tokens {most}" if most is not None else "the most tokens"
    print(f"{which} cut off at {limit}, before {what}: raise --max-tokens", file=sys.stderr, flush=True)
    return CUT_SHORT


def _print_line(index: int, prompt: Prompt, facts: dict[str, Any]) -> None:
    name = {} if prompt.name is None else {"id": prompt.name}
    print(json.dumps({"index": index, **name, **facts}, ensure_ascii=False), flush=True)


def updates(engine: GenerationEngine, requests: Sequence[Request]) -> Iterator[Update]:
    """Add requests and yield their updates to the end; a long prompt's progress is shown on stderr meanwhile."""
    for request in requests:
        engine.add(request)
    with PrefillProgress(engine, requests[0].id) as progress:
        for update in steps(engine, sum(request.n for request in requests), progress):
            progress.clear()
            yield update


def steps(engine: GenerationEngine, left: int, progress: PrefillProgress | None = None) -> Iterator[Update]:
    """Updates until `left` outputs have ended."""
    while left:
        for update in engine.step():
            left -= update.finish is not None
            yield update
        if progress is not None:
            progress.show()


def result(job: Job, encoded: Encoded, outputs: Sequence[Output]) -> dict[str, Any]:
    """Outputs and usage of one prompt, ready for JSON."""
    return {
        "outputs": [_output(job, encoded, output) for output in outputs],
        "usage": {
            "prompt_tokens": len(encoded.ids),
            "cached_tokens": max(output.cached_tokens for output in outputs),
            "completion_tokens": sum(output.n_tokens for output in outputs),
        },
    }


def _output(job: Job, encoded: Encoded, output: Output) -> dict[str, Any]:
    facts: dict[str, Any] = {"index": output.index, "text": output.text}
    if encoded.thinking_open is not None:
        facts |= _parts(output.text, encoded.thinking_open)
    facts |= {
        "token_ids": output.ids,
        "log_probs": [_finite(log_prob) for log_prob in output.log_probs.tolist()],
        "finish_reason": output.finish,
        "stop_reason": output.stop_reason,
    }
    if job.sampling.log_probs:
        facts["alternatives"] = [_alternatives(job, token) for token in output.tokens]
    return facts | ({"error": output.error} if output.finish == "error" else {})


def _parts(text: str, thinking_open: bool) -> dict[str, str]:
    from nano3.data.chat.parsing.output_parser import OutputParser

    parser = OutputParser(None, thinking_open=thinking_open, parse_tools=False)
    deltas = [*parser.push(text), *parser.finish()]
    return {
        "reasoning": "".join(delta.reasoning for delta in deltas),
        "content": "".join(delta.content for delta in deltas),
    }


def _alternatives(job: Job, token: Token) -> list[dict[str, Any]]:
    decode = job.engine.tokenizer.decode
    return [{"id": i, "text": decode([i]), "log_prob": _finite(log_prob)} for i, log_prob in token.top]


def _finite(log_prob: float) -> float | None:
    return log_prob if math.isfinite(log_prob) else None
