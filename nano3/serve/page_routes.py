"""GET /: the pages for the browser, their files as they lie in nano3/serve/page."""

from __future__ import annotations

import hashlib
import mimetypes
from collections.abc import Callable, Coroutine, Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import Response

CHAT, CONTINUE = "chat.html", "continue.html"
"""The page for conversations, and the one for models that only continue text."""
TYPES = {
    ".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml",
    ".woff2": "font/woff2", "": "text/plain",
}  # fmt: skip
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_page(app: FastAPI, start: str = CHAT) -> None:
    """Serve the pages' files from /, and at / itself the one named `start`."""
    page = files("nano3.serve").joinpath("page")
    for path, file in _files(page):
        _add(app, f"/{path}", file)
    _add(app, "/", page.joinpath(start))


def media_type(name: str) -> str:
    """The Content-Type of a page's file."""
    suffix = name[name.rindex(".") :] if "." in name else ""
    return TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"


def _files(folder: Traversable, above: str = "") -> Iterator[tuple[str, Traversable]]:
    for entry in folder.iterdir():
        path = above + entry.name
        if entry.is_dir():
            yield from _files(entry, f"{path}/")
        else:
            yield path, entry


def _add(app: FastAPI, path: str, file: Traversable) -> None:
    app.add_api_route(path, _sender(file), methods=["GET"], include_in_schema=False, response_model=None)


def _sender(file: Traversable) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    async def send(request: Request) -> Response:
        body = file.read_bytes()
        # A browser that has the file already is spared the fonts and scripts of mathematics.
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        headers = HEADERS | {"ETag": tag}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(body, media_type=media_type(file.name), headers=headers)

    return send
