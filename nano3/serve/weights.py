"""POST /update_weights_from_disk and GET /weight_info: a trainer puts its weights in place of those that are served.

The first is in the form of SGLang, the second in that of vLLM. Both are there only where the server was started for it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from nano3.config.errors import UserError
from nano3.engine.protocol import GenerationEngine, MixedWeightsError
from nano3.serve.documents import errors
from nano3.serve.engine_thread import DrainingError, EngineFailedError
from nano3.serve.schemas import WeightsRequest
from nano3.serve.service import Service, service_of
from nano3.serve.transport.errors import ApiError
from nano3.serve.transport.routing import StrictJsonRoute

UPDATE, INFO = "/update_weights_from_disk", "/weight_info"
router = APIRouter(tags=["weights"], route_class=StrictJsonRoute)
TheService = Annotated[Service, Depends(service_of)]


class Updated(BaseModel):
    """The weights are those of the folder."""

    success: bool = True
    message: str


class WeightInfo(BaseModel):
    """What a trainer called the weights that are served; empty: those that the server was started with."""

    weight_version: str


@router.post(UPDATE, responses=errors(400, 401, 500, 503))
async def update_weights(body: WeightsRequest, service: TheService) -> Updated:
    """Replace the weights by those of a folder on a disk that this machine sees too.

    Requests under way end first, later ones wait for the new weights; prefixes that are kept are dropped.
    """
    folder, name = _allowed(service.settings.weights_folder, body.model_path), body.weight_version or ""

    def load(engine: GenerationEngine) -> None:
        try:
            service.weights[engine.load_weights(folder)] = name
        except RuntimeError:  # some are new, some old; or vLLM kept states of the old ones
            service.weights = dict.fromkeys(service.weights, "")
            raise

    try:
        await service.thread.change(load)
    except (DrainingError, EngineFailedError) as error:
        raise service.unavailable(error) from error
    except (UserError, ValueError) as error:
        raise ApiError(400, str(error), param="model_path", code="wrong_weights") from error
    except MixedWeightsError as error:
        raise ApiError(500, str(error), code="mixed_weights") from error
    except OSError as error:
        raise ApiError(500, f"{folder} cannot be read: {error}", code="unreadable_weights") from error
    return Updated(message=f"weights of {folder}")


@router.get(INFO, responses=errors(401))
async def weight_info(service: TheService) -> WeightInfo:
    """Which weights are served."""
    return WeightInfo(weight_version=service.weights[max(service.weights)])


def _allowed(root: Path | None, path: str) -> Path:
    """The folder, which must lie below the one that the server was started with."""
    folder = Path(path)
    try:
        inside = root is not None and folder.resolve().is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError):  # a zero byte, or links in a circle
        inside = False
    if not inside or not folder.is_absolute():
        raise ApiError(
            400, f"{json.dumps(path)} is no absolute path below the folder that --weights-folder names",
            param="model_path", code="invalid_value",
        )  # fmt: skip
    try:
        there = folder.is_dir()
    except OSError:  # too long a name
        there = False
    if not there:
        raise ApiError(400, f"{json.dumps(path)} does not exist on this machine", param="model_path", code="not_found")
    return folder
