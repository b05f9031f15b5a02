"""Answers of the Responses API: whole, and as the events that add up to the same."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from nano3.serve.chat.segments import Segment, Step
from nano3.serve.chat.single_answer import SingleAnswer
from nano3.serve.responses.schemas import ResponsesRequest
from nano3.serve.responses.translate import functions
from nano3.serve.transport.errors import ApiError

_PREFIXES = {"reasoning": "rs", "content": "msg", "call": "fc"}


class ResponseAnswer:
    """One request of the Responses API while it is answered."""

    def __init__(self, answer: SingleAnswer, body: ResponsesRequest, *, name: str, key: str, created: int) -> None:
        """`key`: what the ids of the response and of its items are made of."""
        self._answer, self._key = answer, key
        self._sent = 0
        self._head = {"id": f"resp_{key}", "object": "response", "created_at": created, "model": name} | _echo(body)

    async def whole(self) -> dict[str, Any]:
        """The response. Raises ApiError."""
        await self._answer.whole()
        return self._ended()

    async def events(self) -> AsyncIterator[dict[str, Any] | None]:
        """Events of a stream; None when nothing came for a while."""
        begun = self._response("in_progress", [])
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        try:
            async for step in self._answer.steps():
                if step is None:
                    yield None
                    continue
                for kind, fields in self._of_step(step):
                    yield self._event(kind, **fields)
        except ApiError as error:
            code = "invalid_prompt" if error.status_code < 500 else "server_error"
            failed = self._response("failed", [], error={"code": code, "message": str(error.detail)})
            yield self._event("response.failed", response=failed)
            return
        ended = self._ended()
        yield self._event(f"response.{ended['status']}", response=ended)

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        event = {"type": kind, "sequence_number": self._sent} | fields
        self._sent += 1
        return event

    def _ended(self) -> dict[str, Any]:
        output = [self._item(segment, self._status(segment)) for segment in self._answer.segments]
        usage = self._answer.usage
        counts = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.output_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.output_tokens,
        }
        if self._answer.end.finish == "length":
            return self._response(
                "incomplete", output, incomplete_details={"reason": "max_output_tokens"}, usage=counts
            )
        return self._response("completed", output, usage=counts)

    def _response(self, status: str, output: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
        empty = {"error": None, "incomplete_details": None, "usage": None}
        return self._head | {"status": status, "output": output} | empty | fields

    def _status(self, segment: Segment) -> str:
        return "incomplete" if segment.last and self._answer.end.finish == "length" else "completed"

    def _id(self, segment: Segment) -> str:
        return f"{_PREFIXES[segment.kind]}_{self._key}_{segment.index}"

    def _item(self, segment: Segment, status: str) -> dict[str, Any]:
        """An output item with what is written of it."""
        item: dict[str, Any] = {"id": self._id(segment), "status": status}
        if segment.kind == "call":
            call = {"call_id": segment.call_id, "name": segment.name, "arguments": segment.text}
            return item | {"type": "function_call"} | call
        content = [_part(segment)] if segment.text else []
        if segment.kind == "reasoning":
            return item | {"type": "reasoning", "summary": [], "content": content}
        return item | {"type": "message", "role": "assistant", "content": content}

    def _of_step(self, step: Step) -> Iterator[tuple[str, dict[str, Any]]]:
        """Types and fields of the events that tell of a step."""
        segment = step.segment
        place = {"item_id": self._id(segment), "output_index": segment.index}
        in_part = place if segment.kind == "call" else place | {"content_index": 0}
        logprobs = {"logprobs": []} if segment.kind == "content" else {}
        name = _TEXTS[segment.kind]
        if step.what == "open":
            yield "response.output_item.added", _of_item(segment, self._item(segment, "in_progress"))
            if segment.kind != "call":
                yield "response.content_part.added", in_part | {"part": _part(segment)}
        elif step.what == "more":
            yield f"response.{name}.delta", in_part | {"delta": step.text} | logprobs
        else:
            text = (
                {"name": segment.name, "arguments": segment.text} if segment.kind == "call" else {"text": segment.text}
            )
            yield f"response.{name}.done", in_part | text | logprobs
            if segment.kind != "call":
                yield "response.content_part.done", in_part | {"part": _part(segment)}
            yield "response.output_item.done", _of_item(segment, self._item(segment, self._status(segment)))


_TEXTS = {"reasoning": "reasoning_text", "content": "output_text", "call": "function_call_arguments"}


def _of_item(segment: Segment, item: dict[str, Any]) -> dict[str, Any]:
    return {"output_index": segment.index, "item": item}


def _part(segment: Segment) -> dict[str, Any]:
    if segment.kind == "reasoning":
        return {"type": "reasoning_text", "text": segment.text}
    return {"type": "output_text", "text": segment.text, "annotations": [], "logprobs": []}


def _echo(body: ResponsesRequest) -> dict[str, Any]:
    """What a response repeats of its request, as it was understood."""
    tools = [
        {
            "type": "function",
            "name": t.name,
            "description": t.description,
            "parameters": t.parameters,
            "strict": t.strict,
        }
        for t in functions(body)
    ]
    form = body.text.format.model_dump(exclude_unset=True, by_alias=True) if body.text and body.text.format else None
    choice = body.tool_choice if isinstance(body.tool_choice, str | None) else body.tool_choice.model_dump()
    return {
        "background": False,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "store": False,
        "temperature": body.temperature,
        "text": {"format": form or {"type": "text"}},
        "tool_choice": choice or "auto",
        "tools": tools,
        "top_p": body.top_p,
        "truncation": "disabled",
    }
