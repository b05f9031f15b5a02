"""One output of a chat request, part by part: what the APIs beside /v1/chat/completions are made of."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping

from pydantic import ValidationError

from nano3.engine.request import Update
from nano3.serve.chat.answer import ChatAnswer
from nano3.serve.chat.prompt import ChatPlan
from nano3.serve.chat.segments import Segment, Segments, Step
from nano3.serve.schemas import ChatRequest
from nano3.serve.service import Generation, Service
from nano3.serve.transport.errors import ApiError
from nano3.serve.usage import Usage


def chat_request(fields: dict[str, object]) -> ChatRequest:
    """The chat request that another API's request stands for; fields that are None are left out.

    Raises:
        ApiError: fields that contradict each other (400).
    """
    try:
        return ChatRequest.model_validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        field = first.get("ctx", {}).get("field") or ".".join(map(str, first["loc"]))
        raise ApiError(400, f"{field}: {first['msg']}", param=field, code="invalid_value") from error


def renamed(error: ApiError, names: Mapping[str, str]) -> ApiError:
    """The same error with fields called as in another API: `names` has a regular expression for each chat field."""
    message, param = str(error.detail), error.param
    for pattern, name in names.items():
        message = re.sub(pattern, name, message)
        param = re.sub(pattern, name, param) if param else param
    return ApiError(error.status_code, message, param=param, code=error.code, headers=error.headers)


class SingleAnswer:
    """A planned chat request with one output while it is answered."""

    def __init__(self, service: Service, plan: ChatPlan, form: str | None = None) -> None:
        """`form`: the field that sets the form of the output."""
        self.generation = Generation(service, [plan.request], form)
        self._tick = service.settings.keep_alive_seconds
        self._prompt_tokens = len(plan.prompt.ids)
        self._answer = ChatAnswer(service, plan, with_logprobs=False, with_ids=False)
        self._segments = Segments()
        self._cached = 0

    @property
    def segments(self) -> list[Segment]:
        """The parts so far."""
        return self._segments.all

    @property
    def end(self) -> Update:
        """The update that ended the answer, once it has ended."""
        return self._answer.end

    @property
    def called(self) -> bool:
        """Whether it ended with calls that are whole."""
        return self.end.finish == "stop" and any(segment.kind == "call" for segment in self.segments)

    @property
    def usage(self) -> Usage:
        """Token counts so far."""
        answer = self._answer
        return Usage(self._prompt_tokens, answer.output_tokens, self._cached, answer.reasoning_tokens)

    async def whole(self) -> None:
        """Generate all of it. Raises ApiError."""
        try:
            await self.generation.start()
            async for _ in self.steps():
                pass
        finally:
            self.generation.close()

    async def steps(self) -> AsyncIterator[Step | None]:
        """What happens to the parts, once `generation.start()` is done; None when nothing came for a while.

        Raises:
            ApiError: as `Generation.updates`.
        """
        async for item in self.generation.updates(self._tick):
            if item is None:
                yield None
                continue
            self._cached = max(self._cached, item[1].cached_tokens)
            for delta in self._answer.read(item[1]):
                for step in self._segments.add(delta):
                    yield step
            if self._answer.ended:
                break
        for step in self._segments.end():
            yield step

    def comment(self) -> str:
        """What to say in a stream while a long prompt is computed."""
        done, total = self.generation.progress()
        return f"prefill {done}/{total}" if total else "keep-alive"
