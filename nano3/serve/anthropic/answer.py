"""Answers of the Messages API: whole, and as the events that add up to the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from pydantic_core import from_json

from nano3.serve.chat.segments import Segment, Step
from nano3.serve.chat.single_answer import SingleAnswer
from nano3.serve.service import new_id
from nano3.serve.transport.errors import ANTHROPIC_PATH, ApiError, body_of
from nano3.serve.transport.streaming import NamedEvents

SIGNATURE = "nano3"
"""Thinking blocks must have one; what comes back is read whatever its signature."""


class MessageEvents(NamedEvents):
    """How the Messages API writes a stream."""

    def silence(self, comment: str) -> bytes:
        """A ping."""
        return self.event({"type": "ping"})

    def error(self, error: ApiError) -> bytes:
        """An error event."""
        return self.event(body_of(error, ANTHROPIC_PATH))


class MessageAnswer:
    """One request of the Messages API while it is answered."""

    def __init__(self, answer: SingleAnswer, model: str, max_tokens: int) -> None:
        self._answer, self._max_tokens = answer, max_tokens
        self._head = {"id": new_id("msg"), "type": "message", "role": "assistant", "model": model}

    async def whole(self) -> dict[str, Any]:
        """The message. Raises ApiError."""
        await self._answer.whole()
        content = [_block(segment) for segment in self._answer.segments]
        return self._head | {"content": content} | self._end() | {"usage": self._usage()}

    async def events(self) -> AsyncIterator[dict[str, Any] | None]:
        """Events of a stream; None when nothing came for a while. Raises ApiError."""
        begun = self._head | {"content": [], "stop_reason": None, "stop_sequence": None, "usage": self._usage()}
        yield {"type": "message_start", "message": begun}
        async for step in self._answer.steps():
            if step is None:
                yield None
                continue
            for event in _events(step):
                yield event
        yield {"type": "message_delta", "delta": self._end(), "usage": self._usage()}
        yield {"type": "message_stop"}

    def _end(self) -> dict[str, Any]:
        """Why the answer ended."""
        end = self._answer.end
        stop = end.stop_reason if isinstance(end.stop_reason, str) else None
        if end.finish == "length":
            whole = self._answer.usage.output_tokens >= self._max_tokens
            return {"stop_reason": "max_tokens" if whole else "model_context_window_exceeded", "stop_sequence": None}
        if stop is not None:
            return {"stop_reason": "stop_sequence", "stop_sequence": stop}
        return {"stop_reason": "tool_use" if self._answer.called else "end_turn", "stop_sequence": None}

    def _usage(self) -> dict[str, Any]:
        usage = self._answer.usage
        return {
            "input_tokens": usage.prompt_tokens - usage.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached_tokens,
            "output_tokens": usage.output_tokens,
        }


def _block(segment: Segment) -> dict[str, Any]:
    """A whole block."""
    if segment.kind == "reasoning":
        return {"type": "thinking", "thinking": segment.text, "signature": SIGNATURE}
    if segment.kind == "content":
        return {"type": "text", "text": segment.text}
    # Of a call that was cut off, what is complete: the same as clients make of its deltas.
    arguments = from_json(segment.text, allow_partial=True) if segment.text else {}
    return {"type": "tool_use", "id": segment.call_id, "name": segment.name, "input": arguments}


def _events(step: Step) -> list[dict[str, Any]]:
    segment = step.segment
    if step.what == "open":
        block = {"thinking": "", "signature": ""} if segment.kind == "reasoning" else {"text": ""}
        block |= {"type": "thinking" if segment.kind == "reasoning" else "text"}
        if segment.kind == "call":
            block = {"type": "tool_use", "id": segment.call_id, "name": segment.name, "input": {}}
        return [{"type": "content_block_start", "index": segment.index, "content_block": block}]
    if step.what == "more":
        kind, field = _DELTAS[segment.kind]
        return [_delta(segment, {"type": kind, field: step.text})]
    signed = (
        [_delta(segment, {"type": "signature_delta", "signature": SIGNATURE})] if segment.kind == "reasoning" else []
    )
    return [*signed, {"type": "content_block_stop", "index": segment.index}]


_DELTAS = {
    "reasoning": ("thinking_delta", "thinking"),
    "content": ("text_delta", "text"),
    "call": ("input_json_delta", "partial_json"),
}


def _delta(segment: Segment, delta: dict[str, Any]) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": segment.index, "delta": delta}
