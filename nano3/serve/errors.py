"""Errors in OpenAI's form: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
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


def body_of(error: HTTPException) -> dict[str, Any]:
    """The JSON body of any HTTP error."""
    return error_body(error.status_code, str(error.detail), getattr(error, "param", None), getattr(error, "code", None))


def error_response(error: HTTPException) -> JSONResponse:
    """The whole answer of an HTTP error."""
    return JSONResponse(body_of(error), error.status_code, error.headers)


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error of `app` in OpenAI's form."""

    async def http_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return error_response(error)

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        message, param = describe(error)
        return JSONResponse(error_body(400, message, param, "invalid_value"), 400)

    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse(error_body(500, f"the server failed: {type(error).__name__}"), 500)

    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, unexpected)


def describe(error: RequestValidationError) -> tuple[str, str | None]:
    """One line about what is wrong in a body, and the field it is in."""
    # Of a union's members the one that fits furthest tells most.
    first = max(error.errors(), key=lambda e: len(e["loc"]))
    path = [part for part in first["loc"][1:] if not _is_union_tag(part)]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    message = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if first["type"] == "missing" and not param:
        message = "the body is missing; send a JSON object with content-type application/json"
    elif first["type"] in ("model_attributes_type", "model_type"):
        message = "must be a JSON object, sent with content-type application/json"
    else:
        message = message[:1].lower() + message[1:]
    return (f"{param}: {message}" if param else message), param or None


def _is_union_tag(part: str | int) -> bool:
    """Pydantic names the member of a union in the path, as `list[int]` or `str`; users know no such field."""
    return isinstance(part, str) and (part in ("str", "int", "float", "bool") or "[" in part or part[:1].isupper())
