"""Token ids in, token ids out: requests of the engine as bodies of /v1/completions, and answers as its updates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.detokenize import TextStream
from nano3.engine.request import FinishReason, Request, Sampling, Token, Update
from nano3.engine.thinking import ends_in_thinking, thinking_tracker

SIGN = 1 << 63


class AnswerError(ValueError):
    """An answer that is not to the request, in one line."""


def refusal(request: Request) -> str:
    """What servers cannot be asked for, in one line; empty: nothing."""
    s = request.sampling
    if request.return_experts:
        return "servers do not tell the experts of their tokens"
    if s.grammar is not None:
        return "a form of the output (grammar) cannot be asked of servers"
    if s.log_probs:
        return "alternatives (log_probs) cannot be asked of servers"
    if s.prompt_log_probs is not None and s.max_tokens != 0:
        return "servers score a prompt only without an output: set max_tokens to 0"
    if s.thinking is not None and s.thinking.grace != type(s.thinking)(0).grace:
        return "servers have one grace of a thinking budget: leave it as it is"
    return ""


def unclear_thinking(request: Request, tokenizer: Tokenizer) -> str:
    """Why a server would begin the request's thinking budget elsewhere, in one line; empty: it would not."""
    thinking = request.sampling.thinking
    if thinking is None or thinking.open == ends_in_thinking(request.prompt, tokenizer):
        return ""
    wanted, shown = ("open", "ends outside") if thinking.open else ("closed", "ends in")
    return (
        f"thinking is {wanted}, but the prompt {shown} <think> ... </think>, and servers go by the prompt: the chat "
        "template writes no such marks, or the text of the conversation has some"
    )


def body_of(request: Request, model: str, eos_ids: frozenset[int], room: int) -> dict[str, Any]:
    """The request in fields that nano3 serve and vLLM share. No default of the server's stays in force.

    Args:
        request: without what `refusal` names.
        model: name of the model on the server.
        eos_ids: tokens that end a text.
        room: tokens that fit behind the prompt.
    """
    s = request.sampling
    body: dict[str, Any] = {
        "model": model, "prompt": list(request.prompt), "return_token_ids": True, "logprobs": 0,
    }  # fmt: skip
    if s.max_tokens == 0:
        return body | {"max_tokens": 0, "echo": True}
    body |= {
        "n": request.n, "max_tokens": room if s.max_tokens is None else min(room, s.max_tokens),
        "temperature": s.temperature, "top_p": s.top_p, "top_k": s.top_k, "min_p": s.min_p,
        "repetition_penalty": s.repetition_penalty, "presence_penalty": s.presence_penalty,
        "frequency_penalty": s.frequency_penalty,
        "stop_token_ids": sorted({*s.stop_ids} | (set() if s.ignore_eos else eos_ids)), "ignore_eos": True,
    }  # fmt: skip
    if s.seed is not None:
        seed = s.seed & (2 * SIGN - 1)
        body["seed"] = seed - 2 * SIGN if seed >= SIGN else seed  # of 64 bits, as the field takes them
    if s.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in s.logit_bias.items()}
    if s.min_tokens:
        body["min_tokens"] = s.min_tokens
    if s.stop:
        body["stop"] = list(s.stop)
    if s.thinking is not None:
        body["thinking_token_budget"] = s.thinking.tokens
    return body


def updates_of(
    request: Request,
    answer: Mapping[str, Any],
    tokenizer: Tokenizer,
    eos_ids: frozenset[int],
    version: int,
    ids_limit: int,
) -> list[Update]:
    """The whole outputs of a request, an update each.

    Args:
        request: what was asked.
        answer: body of the reply.
        tokenizer: of the trainer: texts are made here, from the ids.
        eos_ids: tokens that end a text.
        version: of the weights.
        ids_limit: only ids below it may have been drawn.

    Raises:
        AnswerError: it is in another form, or not to this request.
    """
    try:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        details = (answer.get("usage") or {}).get("prompt_tokens_details") or {}
        cached = int(details.get("cached_tokens") or 0)
        if len(choices) != request.n:
            raise AnswerError(f"{len(choices)} outputs, {request.n} were asked for")
        outputs = [_output(request, choice, tokenizer, eos_ids) for choice in choices]
        beyond = next((token.id for output in outputs for token in output.tokens if token.id >= ids_limit), None)
        if beyond is not None:
            raise AnswerError(f"it drew token {beyond}, of ids below {ids_limit:,}; start it with the run's tokenizer")
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, AnswerError):
            raise
        raise AnswerError(f"not an answer in vLLM's form ({type(error).__name__}: {error})") from error
    # What n outputs took from the cache is told of all together.
    return [
        output._replace(index=i, weights_version=version, cached_tokens=cached if i == 0 else 0)
        for i, output in enumerate(outputs)
    ]


def _output(request: Request, choice: Mapping[str, Any], tokenizer: Tokenizer, eos_ids: frozenset[int]) -> Update:
    log_probs = choice["logprobs"]["token_logprobs"]
    given = choice.get("prompt_token_ids")
    if given is not None and tuple(given) != request.prompt:
        raise AnswerError("its prompt_token_ids are not those that it was asked with")
    if request.sampling.max_tokens == 0:
        return _scored(request, log_probs)
    ids = choice["token_ids"]
    if ids is None or len(ids) != len(log_probs) or not ids:
        raise AnswerError("token_ids and token_logprobs do not belong together; vLLM has them from 0.11 on")
    tokens = _tokens(request, ids, log_probs, tokenizer)
    text, finish, reason = _text(request.sampling, ids, choice, tokenizer, eos_ids)
    error = "the server dropped the request" if finish == "error" else ""
    return Update(request.id, 0, tokens, text, finish, reason, error=error)


def _scored(request: Request, log_probs: Sequence[float | None]) -> Update:
    if len(log_probs) != len(request.prompt):
        raise AnswerError(f"{len(log_probs)} scores of a prompt of {len(request.prompt)} tokens")
    values = [math.nan, *map(float, itertools.islice(log_probs, 1, None))]  # type: ignore[arg-type]
    tokens = tuple(Token(int(i), value, value) for i, value in zip(request.prompt, values, strict=True))
    return Update(request.id, 0, finish="length", prompt=tokens)


def _tokens(
    request: Request, ids: Sequence[int], log_probs: Sequence[float], tokenizer: Tokenizer
) -> tuple[Token, ...]:
    """With those that the thinking budget wrote, which are known from the tokens before them."""
    s, tokens = request.sampling, []
    tracker = None if s.thinking is None else thinking_tracker(s, tokenizer)
    for token_id, log_prob in zip(ids, log_probs, strict=True):
        forced = tracker.forced if tracker is not None else None
        if forced is not None and forced != token_id:
            raise AnswerError("it keeps the thinking budget otherwise than nano3 serve")
        if tracker is not None:
            tracker.accept(token_id)
        value = float(log_prob)
        tokens.append(Token(int(token_id), value, value, (), forced is not None))
    return tuple(tokens)


def _text(
    s: Sampling, ids: Sequence[int], choice: Mapping[str, Any], tokenizer: Tokenizer, eos_ids: frozenset[int]
) -> tuple[str, FinishReason, int | str | None]:
    """Text, why it ended, and at which stop."""
    text, last = TextStream(tokenizer, s.stop, s.include_stop), ids[-1]
    ends = (not s.ignore_eos and last in eos_ids) or last in s.stop_ids
    pieces = [
        text.push(i, hidden=ends and at == len(ids), check_stop=at >= s.min_tokens) for at, i in enumerate(ids, 1)
    ]
    pieces.append(text.flush())
    if text.stopped is not None:
        return "".join(pieces), "stop", text.stopped
    if ends:
        return "".join(pieces), "stop", last if last in s.stop_ids and last not in eos_ids else None
    finish = choice.get("finish_reason")
    return "".join(pieces), finish if finish in ("stop", "length") else "error", choice.get("stop_reason")
