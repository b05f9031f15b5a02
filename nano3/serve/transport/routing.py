"""Bodies are parsed strictly: JSON that is valid Unicode, not too deep, without NaN; anything else is a clear 400."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json

from nano3.serve.transport.errors import ApiError


class StrictRequest(Request):
    """A request whose JSON is read by pydantic's parser."""

    async def json(self) -> Any:
        """The body, without a byte-order mark. Raises ApiError (400)."""
        try:
            return from_json((await self.body()).removeprefix(BOM_UTF8), allow_inf_nan=False)
        except ValueError as error:
            raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from error


class StrictJsonRoute(APIRoute):
    """Gives its endpoint a StrictRequest."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's handler."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return strict
