"""GET /v1/models, /health, /health/live, /health/ready, /metrics and /version."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from pydantic import BaseModel
from starlette.responses import Response

from nano3 import __version__
from nano3.serve.documents import errors
from nano3.serve.service import Service, service_of
from nano3.serve.transport.errors import ApiError

router = APIRouter(tags=["status"])
TheService = Annotated[Service, Depends(service_of)]


class Model(BaseModel):
    """The model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "nano3"
    root: str
    max_model_len: int
    ids_limit: int
    """Only ids below it are drawn, and what is drawn has its log-probability over these alone."""
    thinking_default: bool
    """Whether answers begin with thinking where a request does not say; false for base models."""
    base_model: bool
    """Whether the model has never seen a conversation, and is for continuing text."""
    opening: str
    """How a text of the model's kind begins; empty where that is not known."""


class Models(BaseModel):
    """All models of this server: one."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """How the server is."""

    status: Literal["ok", "draining", "failed"]
    detail: str | None = None


class Version(BaseModel):
    """What runs here."""

    version: str


_HEALTH: dict[int | str, dict[str, Any]] = {503: {"model": Health, "description": "It is not."}}


@router.get("/v1/models/", responses=errors(401), include_in_schema=False)
@router.get("/v1/models", responses=errors(401))
async def models(service: TheService) -> Models:
    """The models of this server."""
    return Models(data=[_model(service)])


@router.get("/v1/models/{name:path}", responses=errors(401, 404))
async def model(name: str, service: TheService) -> Model:
    """One model."""
    if name.rstrip("/") != service.name.rstrip("/"):
        raise ApiError(404, f"the model {name!r} does not exist; this server has {service.name!r}", param="model",
                       code="model_not_found")  # fmt: skip
    return _model(service)


@router.get("/health", response_model=Health, responses=_HEALTH)
@router.get("/health/ready", response_model=Health, responses=_HEALTH)
async def ready(service: TheService) -> Response:
    """Whether requests are taken."""
    if service.thread.failure is not None:
        return _health(503, Health(status="failed", detail=str(service.thread.failure)))
    if not service.thread.ready:
        return _health(503, Health(status="draining", detail="accepted requests are being finished"))
    return _health(200, Health(status="ok"))


@router.get("/health/live", response_model=Health, responses=_HEALTH)
async def live(service: TheService) -> Response:
    """Whether the process is of use: not so once its engine has failed, for only a restart helps then."""
    if service.thread.failure is not None:
        return _health(503, Health(status="failed", detail=str(service.thread.failure)))
    return _health(200, Health(status="ok"))


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(service: TheService) -> Response:
    """Counters for Prometheus."""
    return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


@router.get("/version")
async def version() -> Version:
    """The version of nano3."""
    return Version(version=__version__)


def _model(service: Service) -> Model:
    settings = service.settings
    return Model(id=service.name, created=service.created, root=service.name, max_model_len=service.max_context,
                 ids_limit=service.ids_limit, thinking_default=not settings.base_model, base_model=settings.base_model,
                 opening=settings.opening)  # fmt: skip


def _health(status: int, health: Health) -> JSONResponse:
    return JSONResponse(health.model_dump(exclude_none=True), status)
