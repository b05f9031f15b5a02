"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi import Request as HttpRequest
from starlette.responses import Response

from nano3.serve.anthropic.answer import MessageAnswer, MessageEvents
from nano3.serve.anthropic.schemas import CountRequest, MessagesError, MessagesRequest, TokenCount
from nano3.serve.anthropic.translate import NAMES, to_chat
from nano3.serve.chat.prompt import ChatPlan, make_prompt, plain, plan_chat
from nano3.serve.chat.single_answer import SingleAnswer, renamed
from nano3.serve.documents import RUN_ERRORS, errors
from nano3.serve.service import Service, service_of
from nano3.serve.tokenize import MOST_CHARACTERS
from nano3.serve.transport.errors import ApiError
from nano3.serve.transport.routing import StrictJsonRoute
from nano3.serve.transport.streaming import EventStream, JsonAnswer, while_connected

router = APIRouter(tags=["messages"], route_class=StrictJsonRoute)
TheService = Annotated[Service, Depends(service_of)]
_MESSAGE: dict[str, Any] = {
    "type": "object",
    "required": ["id", "type", "role", "model", "content", "stop_reason", "stop_sequence", "usage"],
    "properties": {
        "id": {"type": "string"},
        "type": {"const": "message"},
        "role": {"const": "assistant"},
        "model": {"type": "string"},
        "content": {"type": "array", "items": {"type": "object", "required": ["type"]}},
        "stop_reason": {"type": "string"},
        "stop_sequence": {"type": ["string", "null"]},
        "usage": {"type": "object", "required": ["input_tokens", "output_tokens"]},
    },
}
_RESPONSES: dict[int | str, dict[str, Any]] = errors(*RUN_ERRORS, model=MessagesError) | {
    200: {
        "description": "The message; with stream: true its events, from message_start to message_stop.",
        "content": {"application/json": {"schema": _MESSAGE}, "text/event-stream": {}},
    }
}


@router.post("/v1/messages", response_model=None, responses=_RESPONSES)
async def messages(body: MessagesRequest, request: HttpRequest, service: TheService) -> Response:
    """Answer a conversation in Anthropic's form, at once or as a stream of server-sent events."""
    service.check_model(body.model)
    service.check_outputs(1)
    plan = await while_connected(request, service.plan(request, _planned, service, body))
    answer = SingleAnswer(service, plan, "output_config.format" if body.output_config else "tools")
    message = MessageAnswer(answer, service.name, body.max_tokens)
    if not body.stream:
        return JsonAnswer(await while_connected(request, message.whole()))
    await answer.generation.start()
    return EventStream(
        message.events(), answer.generation.close, patience=answer.generation.patience, form=MessageEvents()
    )


@router.post("/v1/messages/count_tokens", responses=errors(400, 401, 404, 413, 503, model=MessagesError))
async def count_tokens(body: CountRequest, request: HttpRequest, service: TheService) -> TokenCount:
    """Tokens of the prompt that /v1/messages would make of the same body."""
    service.check_model(body.model)
    count = await while_connected(request, service.plan(request, _count, service, body))
    return TokenCount(input_tokens=count)


def _planned(service: Service, body: MessagesRequest) -> ChatPlan:
    try:
        return plan_chat(service, to_chat(body), shorten=True)
    except ApiError as error:
        raise renamed(error, NAMES) from error


def _count(service: Service, body: CountRequest) -> int:
    chat = to_chat(body)
    tools = [] if chat.tool_choice == "none" else plain(chat.tools)
    return len(make_prompt(service, chat, tools, max(service.most_characters, MOST_CHARACTERS)).ids)
