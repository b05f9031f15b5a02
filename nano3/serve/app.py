"""The server as one FastAPI application over one engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.middleware.cors import CORSMiddleware

from nano3 import __version__
from nano3.engine.protocol import GenerationEngine
from nano3.serve import completions, status, tokenize, weights
from nano3.serve.anthropic import routes as messages
from nano3.serve.chat import routes as chat
from nano3.serve.docs_page import add_docs
from nano3.serve.page_routes import CHAT, CONTINUE, add_page
from nano3.serve.responses import routes as responses
from nano3.serve.service import Service
from nano3.serve.settings import Settings
from nano3.serve.transport.errors import add_error_handlers
from nano3.serve.transport.middleware import ApiKeys, BodyLimit, CountAnswers, HeadAsGet

UNUSED_SCHEMAS = ("HTTPValidationError", "ValidationError")


def create_app(engine: GenerationEngine, *, name: str, settings: Settings | None = None) -> FastAPI:
    """The application; its engine runs from start-up to shut-down (ASGI lifespan).

    Args:
        engine: owned by the application from now on, closed with it.
        name: what clients call the model.
        settings: limits and keys.
    """
    settings = settings or Settings()
    service = Service(engine, name, settings)
    app = FastAPI(title="nano3", version=__version__, docs_url=None, redoc_url=None, lifespan=_lifespan)
    app.state.service = service
    rooms = [chat, responses, messages, completions, tokenize, status]
    routers = [room.router for room in rooms + [weights] * (settings.weights_folder is not None)]
    for router in routers:
        app.include_router(router)
    add_page(app, start=CONTINUE if settings.text_page else CHAT)
    add_docs(app, name)
    add_error_handlers(app)
    # The last one added is the outermost.
    app.add_middleware(HeadAsGet)
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes)
    if settings.api_keys:
        app.add_middleware(ApiKeys, keys=settings.api_keys)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.cors_origins), allow_methods=["*"], allow_headers=["*"]
        )
    paths = {getattr(route, "path", "") for router in routers for route in router.routes}
    app.add_middleware(CountAnswers, metrics=service.metrics, paths=paths)
    app.openapi = lambda: _document(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.service.thread.start()
    try:
        yield
    finally:
        # In a thread, since the last step may take a while and its readers are told in this loop.
        await asyncio.to_thread(app.state.service.thread.close)


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, without the 422 that FastAPI writes: a wrong body is answered 400 here."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for schema in UNUSED_SCHEMAS:
            document.get("components", {}).get("schemas", {}).pop(schema, None)
        app.openapi_schema = document
    return app.openapi_schema
