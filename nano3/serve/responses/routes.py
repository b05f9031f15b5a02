"""POST /v1/responses."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi import Request as HttpRequest
from starlette.responses import Response

from nano3.serve.chat.prompt import ChatPlan, plan_chat
from nano3.serve.chat.single_answer import SingleAnswer, renamed
from nano3.serve.documents import RUN_ERRORS, errors
from nano3.serve.responses.answer import ResponseAnswer
from nano3.serve.responses.schemas import ResponsesRequest
from nano3.serve.responses.translate import NAMES, to_chat
from nano3.serve.service import Service, service_of
from nano3.serve.transport.errors import ApiError
from nano3.serve.transport.routing import StrictJsonRoute
from nano3.serve.transport.streaming import EventStream, JsonAnswer, NamedEvents, while_connected

router = APIRouter(tags=["responses"], route_class=StrictJsonRoute)
_RESPONSE: dict[str, Any] = {
    "type": "object",
    "required": ["id", "object", "created_at", "model", "status", "output", "usage"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "response"},
        "created_at": {"type": "integer"},
        "model": {"type": "string"},
        "status": {"enum": ["completed", "incomplete"]},
        "output": {"type": "array", "items": {"type": "object", "required": ["id", "type"]}},
        "usage": {"type": "object", "required": ["input_tokens", "output_tokens", "total_tokens"]},
    },
}
_RESPONSES: dict[int | str, dict[str, Any]] = errors(*RUN_ERRORS) | {
    200: {
        "description": "The response; with stream: true its events, from response.created to response.completed.",
        "content": {"application/json": {"schema": _RESPONSE}, "text/event-stream": {}},
    }
}


@router.post("/v1/responses", response_model=None, responses=_RESPONSES)
async def create_response(
    body: ResponsesRequest, request: HttpRequest, service: Annotated[Service, Depends(service_of)]
) -> Response:
    """Answer a conversation in the form of OpenAI's Responses API, at once or as a stream; nothing is stored."""
    service.check_model(body.model)
    service.check_outputs(1)
    plan = await while_connected(request, service.plan(request, _planned, service, body))
    answer = SingleAnswer(service, plan, "text.format" if body.text and body.text.format else "tools")
    response = ResponseAnswer(
        answer, body, name=service.name, key=plan.request.id.rpartition("-")[2], created=service.now()
    )
    if not body.stream:
        return JsonAnswer(await while_connected(request, response.whole()))
    await answer.generation.start()
    generation = answer.generation
    return EventStream(
        response.events(), generation.close, answer.comment, patience=generation.patience, form=NamedEvents()
    )


def _planned(service: Service, body: ResponsesRequest) -> ChatPlan:
    try:
        return plan_chat(service, to_chat(body))
    except ApiError as error:
        raise renamed(error, NAMES) from error
