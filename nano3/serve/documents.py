"""What the OpenAPI document says of answers."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Body of every answer that is not a success."""

    error: ErrorDetail


_MEANINGS = {
    400: "The request is wrong; the message says where.",
    401: "No valid API key.",
    404: "No such model.",
    413: "The body is too large.",
    429: "The queue is full; Retry-After says when to come again.",
    500: "The engine or the server has failed.",
    503: "The server is shutting down or not ready.",
    504: "The answer was not complete in time.",
}


def errors(*statuses: int, model: type[BaseModel] = ErrorBody) -> dict[int | str, dict[str, Any]]:
    """Documentation of error answers, whose bodies are of `model`."""
    return {status: {"model": model, "description": _MEANINGS[status]} for status in statuses}


def _answer(description: str, kind: str, choice: dict[str, Any], stream: bool = True) -> dict[str, Any]:
    schema = {
        "type": "object",
        "required": ["id", "object", "created", "model", "choices", "usage"],
        "properties": {
            "id": {"type": "string"},
            "object": {"const": kind},
            "created": {"type": "integer"},
            "model": {"type": "string"},
            "choices": {"type": "array", "items": choice},
            "usage": {"type": "object"},
        },
    }
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if stream:
        # No schema: tools disagree on whether it would be of the whole stream or of one event.
        content["text/event-stream"] = {}
    return {"description": description, "content": content}


_FINISH = {"index": {"type": "integer"}, "finish_reason": {"type": "string"}}
RUN_ERRORS = (400, 401, 404, 413, 429, 500, 503, 504)
"""What a request that generates may be answered beside its result."""
CHAT_RESPONSES = errors(*RUN_ERRORS) | {
    200: _answer(
        "The answer; with stream: true chat.completion.chunk events, then [DONE].", "chat.completion",
        {"type": "object", "required": ["index", "message", "finish_reason"],
         "properties": _FINISH | {"message": {"type": "object"}}},
    )
}  # fmt: skip
COMPLETION_RESPONSES = errors(*RUN_ERRORS) | {
    200: _answer(
        "The continuations; with stream: true text_completion events, then [DONE].", "text_completion",
        {"type": "object", "required": ["index", "text", "finish_reason"],
         "properties": _FINISH | {"text": {"type": "string"}}},
    )
}  # fmt: skip
