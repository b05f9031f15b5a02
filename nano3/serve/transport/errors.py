"""Errors in OpenAI's form, {"error": {"message", "type", "param", "code"}}, and below /v1/messages in Anthropic's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}

ANTHROPIC_PATH = "/v1/messages"
ANTHROPIC_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}

LONGEST_KEY = 100
"""Characters of a client's own words that an error repeats."""
WRONG_FIELD = "wrong_field"
MUST_BE = "must be "
_TAGS = ("str", "int", "float", "bool", "constrained-str", "constrained-int", "constrained-float")
_WORDING = {
    "missing": "is missing",
    "too_short": "must not be empty",
    "too_long": "holds more than {max_length} items",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "must match {pattern}",
    "string_type": "must be a string",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be a JSON object",
    "model_type": "must be a JSON object",
    "model_attributes_type": "must be a JSON object",
    "literal_error": "must be {expected}",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
}
"""Pydantic's kinds of errors in our words."""


def wrong_field(field: str, message: str) -> PydanticCustomError:
    """For validators of whole objects: the field at fault, and what is wrong with it."""
    return PydanticCustomError(WRONG_FIELD, "{message}", {"field": field, "message": message})


class ApiError(HTTPException):
    """An answer other than 200: one clear line, and the field at fault where there is one."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.param, self.code = param, code


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The JSON body of an error."""
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def body_of(error: HTTPException, path: str = "") -> dict[str, Any]:
    """The JSON body of any HTTP error, in the form that clients of `path` expect."""
    if path.startswith(ANTHROPIC_PATH):
        kind = ANTHROPIC_TYPES.get(
            error.status_code, "invalid_request_error" if error.status_code < 500 else "api_error"
        )
        return {"type": "error", "error": {"type": kind, "message": str(error.detail)}}
    return error_body(error.status_code, str(error.detail), getattr(error, "param", None), getattr(error, "code", None))


def error_response(error: HTTPException, path: str = "") -> JSONResponse:
    """The whole answer of an HTTP error to a request of `path`."""
    return JSONResponse(body_of(error, path), error.status_code, error.headers)


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error of `app` in the form of its path."""

    async def http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        if error.status_code == 404 and not isinstance(error, ApiError):
            error = ApiError(404, f"there is no {request.url.path[:LONGEST_KEY]}; /docs lists what there is")
        return error_response(error, request.url.path)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        message, param = describe(error, request.headers.get("content-type", ""))
        return error_response(ApiError(400, message, param=param, code="invalid_value"), request.url.path)

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        return error_response(ApiError(500, f"the server failed: {type(error).__name__}"), request.url.path)

    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, unexpected)


def describe(error: RequestValidationError, content_type: str = "") -> tuple[str, str | None]:
    """One line about what is wrong in a body, and the field it is in.

    Args:
        error: what FastAPI found.
        content_type: what the body was sent as.
    """
    # Of a union's members the one that fits furthest tells most.
    found = sorted(error.errors(), key=_depth, reverse=True)
    first, param = found[0], _param(found[0])
    if not param:
        return _wrong_body(first, content_type), None
    # What each of several members wants instead, once.
    same = [message for e in found if _depth(e) == _depth(first) and _param(e) == param for message in [_message(e)]]
    if len(same) > 1 and all(message.startswith(MUST_BE) for message in same):
        return f"{param}: {MUST_BE}{' or '.join(dict.fromkeys(m.removeprefix(MUST_BE) for m in same))}", param
    return f"{param}: {_message(first)}", param


def _depth(found: Mapping[str, Any]) -> tuple[int, list[int], bool]:
    """How much of the body fits: up to which place, and there at least the type."""
    indices = [part for part in found["loc"] if isinstance(part, int)]
    return len(found["loc"]), indices, not found["type"].endswith("_type")


def _param(found: Mapping[str, Any]) -> str:
    """Where it is, as `messages[0].content`."""
    path = [part for part in found["loc"][1:] if not _is_union_tag(part)]
    if found["type"] == WRONG_FIELD:
        path.append(found["ctx"]["field"])
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part[:LONGEST_KEY]}" for part in path).lstrip(".")


def _message(found: Mapping[str, Any]) -> str:
    wording = _WORDING.get(found["type"])
    if wording is not None:
        bounds = (found.get("ctx") or {}).items()
        return wording.format_map({k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in bounds})
    message = found["msg"].removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _wrong_body(found: Mapping[str, Any], content_type: str) -> str:
    if found["type"] == "missing":
        return "the body is missing; send a JSON object with content-type application/json"
    if isinstance(found.get("input"), bytes):
        sent = f"was sent as {content_type[:LONGEST_KEY]}" if content_type else "came without a content-type"
        return f"the body {sent}; send JSON with content-type application/json"
    return "the body must be a JSON object"


def _is_union_tag(part: str | int) -> bool:
    """Pydantic names the member of a union in the path, as `list[int]` or `str`; users know no such field."""
    return isinstance(part, str) and (part in _TAGS or "[" in part or part[:1].isupper())
