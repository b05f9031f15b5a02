"""GET /: the chat page, its files as they lie in nano3/serve/page."""

from __future__ import annotations

import mimetypes
from collections.abc import Callable, Coroutine
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from fastapi import FastAPI
from starlette.responses import Response

INDEX = "index.html"
TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_page(app: FastAPI) -> None:
    """Serve the page's files from /, and the page itself at /."""
    for file in files("nano3.serve").joinpath("page").iterdir():
        if file.is_file():
            for path in (f"/{file.name}", *(("/",) if file.name == INDEX else ())):
                app.add_api_route(path, _sender(file), methods=["GET"], include_in_schema=False, response_model=None)


def _sender(file: Traversable) -> Callable[[], Coroutine[Any, Any, Response]]:
    suffix = "." + file.name.rpartition(".")[2]
    media_type = TYPES.get(suffix) or mimetypes.guess_type(file.name)[0] or "application/octet-stream"

    async def send() -> Response:
        return Response(file.read_bytes(), media_type=media_type, headers=HEADERS)

    return send
