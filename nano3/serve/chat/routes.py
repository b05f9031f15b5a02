"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi import Request as HttpRequest
from starlette.responses import Response

from nano3.serve.chat.answer import ChatAnswer
from nano3.serve.chat.prompt import ChatPlan, plan_chat
from nano3.serve.documents import CHAT_RESPONSES
from nano3.serve.schemas import ChatRequest
from nano3.serve.service import Generation, Service, service_of
from nano3.serve.transport.routing import StrictJsonRoute
from nano3.serve.transport.streaming import EventStream, JsonAnswer, while_connected
from nano3.serve.usage import Usage

router = APIRouter(tags=["chat"], route_class=StrictJsonRoute)


@router.post("/v1/chat/completions", response_model=None, responses=CHAT_RESPONSES)
async def chat_completions(
    body: ChatRequest, request: HttpRequest, service: Annotated[Service, Depends(service_of)]
) -> Response:
    """Answer a conversation, at once or as a stream of server-sent events."""
    service.check_model(body.model)
    service.check_outputs(body.n or 1)
    plan = await while_connected(request, service.plan(request, plan_chat, service, body))
    chat = _Chat(service, body, plan)
    if not body.stream:
        return await while_connected(request, chat.whole())
    await chat.generation.start()
    return EventStream(chat.events(), chat.generation.close, chat.comment, patience=chat.generation.patience)


class _Chat:
    """One chat request while it is answered."""

    def __init__(self, service: Service, body: ChatRequest, plan: ChatPlan) -> None:
        self.generation = Generation(service, [plan.request], body.form_field or "tools")
        self._service, self._body, self._plan = service, body, plan
        with_ids = bool(body.return_token_ids)
        self._answers = [ChatAnswer(service, plan, bool(body.logprobs), with_ids) for _ in range(plan.request.n)]
        self._cached = 0
        self._head = {"id": plan.request.id, "created": service.now(), "model": service.name}
        self._prompt_ids = {"prompt_token_ids": list(plan.prompt.ids)} if with_ids else {}

    async def whole(self) -> Response:
        """The answer at once."""
        try:
            await self.generation.start()
            async for item in self.generation.updates():
                if item is not None:
                    self._add(item[1])
                if self._ended():
                    break
        finally:
            self.generation.close()
        choices = [{"index": i} | answer.choice() for i, answer in enumerate(self._answers)]
        head = self._head | {"object": "chat.completion"}
        return JsonAnswer(head | {"choices": choices, "usage": self._usage()} | self._prompt_ids)

    async def events(self) -> AsyncIterator[dict[str, Any] | None]:
        """Chunks of a stream; None when nothing came for a while."""
        extra = self._prompt_ids
        for index in range(len(self._answers)):
            delta = {"role": "assistant", "content": ""}
            yield self._chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}]) | extra
            extra = {}
        async for item in self.generation.updates(self._service.settings.keep_alive_seconds):
            if item is None:
                yield None
                continue
            for choice in self._add(item[1]):
                yield self._chunk([{"index": item[1].index} | choice])
            if self._ended():
                break
        if self._body.include_usage:
            yield self._chunk([]) | {"usage": self._usage()}

    def comment(self) -> str:
        """What to say in a stream while a long prompt is computed."""
        done, total = self.generation.progress()
        return f"prefill {done}/{total}" if total else "keep-alive"

    def _ended(self) -> bool:
        """Whether what is still generated, if anything, is of no use: it is dropped when the answer is closed."""
        return all(answer.ended for answer in self._answers)

    def _add(self, update: Any) -> list[dict[str, Any]]:
        self._cached = max(self._cached, update.cached_tokens)
        return self._answers[update.index].add(update)

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = self._head | {"object": "chat.completion.chunk", "choices": choices}
        return chunk | {"usage": None} if self._body.include_usage else chunk

    def _usage(self) -> dict[str, Any]:
        return Usage(
            len(self._plan.prompt.ids),
            sum(answer.output_tokens for answer in self._answers),
            self._cached,
            sum(answer.reasoning_tokens for answer in self._answers),
        ).body()
