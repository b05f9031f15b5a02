"""POST /v1/completions: plain continuation, scoring of prompts included."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi import Request as HttpRequest
from starlette.responses import Response

from nano3.data.chat.parsing.output_parser import GrowingText
from nano3.engine.request import Request, ThinkingBudget, Update
from nano3.engine.thinking import ends_in_thinking
from nano3.serve.documents import COMPLETION_RESPONSES
from nano3.serve.sampling import grammar_of, sampling_of
from nano3.serve.schemas import CompletionRequest
from nano3.serve.service import Generation, Service, new_id, service_of
from nano3.serve.tokens import CompletionLogprobs
from nano3.serve.transport.errors import ApiError
from nano3.serve.transport.routing import StrictJsonRoute
from nano3.serve.transport.streaming import EventStream, JsonAnswer, while_connected
from nano3.serve.usage import Usage

router = APIRouter(tags=["completions"], route_class=StrictJsonRoute)


@router.post("/v1/completions", response_model=None, responses=COMPLETION_RESPONSES)
async def completions(
    body: CompletionRequest, request: HttpRequest, service: Annotated[Service, Depends(service_of)]
) -> Response:
    """Continue one text or several, given as text or as token ids."""
    service.check_model(body.model)
    requests = await while_connected(request, service.plan(request, plan_completions, service, body))
    work = _Completions(service, body, requests)
    if not body.stream:
        return await while_connected(request, work.whole())
    await work.generation.start()
    return EventStream(work.events(), work.generation.close, patience=work.generation.patience)


def plan_completions(service: Service, body: CompletionRequest) -> list[Request]:
    """One engine request a prompt. Raises ApiError (400)."""
    given = _prompts(body.prompt)
    service.check_outputs(len(given) * (body.n or 1))
    max_tokens = 16 if body.max_tokens is None else body.max_tokens
    prompts = [service.cut(_ids(service, body, p), body.truncate_prompt_tokens, max_tokens) for p in given]
    sampling = sampling_of(
        body,
        max_tokens=max_tokens,
        log_probs=body.logprobs,
        prompt_log_probs=body.logprobs if body.echo else None,
        grammar=grammar_of(body, after_thinking=False),
    )
    for prompt in prompts:
        service.check_length(len(prompt), max_tokens, "prompt", "max_tokens")
    samplings = [replace(sampling, thinking=_budget(service, body, prompt)) for prompt in prompts]
    return [Request(new_id("cmpl"), prompt, how, body.n or 1) for prompt, how in zip(prompts, samplings, strict=True)]


def _budget(service: Service, body: CompletionRequest, prompt: Sequence[int]) -> ThinkingBudget | None:
    tokens = body.thinking_token_budget
    if tokens is None or tokens < 0:
        return None
    return ThinkingBudget(tokens, open=ends_in_thinking(prompt, service.tokenizer))


def _prompts(prompt: Any) -> Sequence[str | Sequence[int]]:
    """One text, several, one list of ids, or several."""
    return [prompt] if isinstance(prompt, str) or not prompt or isinstance(prompt[0], int) else prompt


def _ids(service: Service, body: CompletionRequest, prompt: str | Sequence[int]) -> tuple[int, ...]:
    if isinstance(prompt, str):
        # An empty text begins as a document does.
        return tuple(service.encode(prompt, body.add_special_tokens, service.most_characters)) or (
            service.tokenizer.eos_id,
        )
    if not prompt:
        raise ApiError(400, "prompt is empty; give at least one token", param="prompt", code="invalid_value")
    return tuple(prompt)


class _Completion:
    """One of the outputs of one prompt."""

    def __init__(self, service: Service, body: CompletionRequest, prompt: Sequence[int]) -> None:
        self._prompt, self._body = prompt, body
        self._echo = service.tokenizer.decode(prompt) if body.echo else ""
        self._logprobs = None if body.logprobs is None else CompletionLogprobs(service.texts, body.logprobs)
        self._started = False
        self.output_tokens = 0

    def add(self, update: Update) -> dict[str, Any]:
        """The choice (without index) that tells of this update."""
        choice: dict[str, Any] = {"text": update.text, "logprobs": None}
        tokens = update.tokens
        if not self._started:
            choice["text"] = self._echo + update.text
            tokens = (*(update.prompt or ()), *tokens)
            self._started = True
        self.output_tokens += len(update.tokens)
        if self._logprobs is not None:
            choice["logprobs"] = self._logprobs.add(tokens)
        if self._body.return_token_ids:
            choice["token_ids"] = [token.id for token in update.tokens]
        return choice | {"finish_reason": update.finish, "stop_reason": update.stop_reason}


class _Completions:
    """One completion request while it is answered."""

    def __init__(self, service: Service, body: CompletionRequest, requests: Sequence[Request]) -> None:
        self.generation = Generation(service, requests, body.form_field)
        self._service, self._body, self._n = service, body, requests[0].n
        self._requests = requests
        self._outputs = [_Completion(service, body, request.prompt) for request in requests for _ in range(self._n)]
        self._cached = [0] * len(requests)
        self._versions: set[int] = set()
        self._head = {
            "id": new_id("cmpl"), "object": "text_completion", "created": service.now(), "model": service.name,
        }  # fmt: skip

    async def whole(self) -> Response:
        """The answer at once."""
        choices: list[dict[str, Any]] = [{} for _ in self._outputs]
        texts = [GrowingText() for _ in self._outputs]
        try:
            await self.generation.start()
            async for item in self.generation.updates():
                if item is not None:
                    index, choice = self._add(*item)
                    texts[index].add(choice.pop("text"))
                    _extend(choices[index], choice)
        finally:
            self.generation.close()
        if self._body.return_token_ids:
            for index, choice in enumerate(choices):
                choice["prompt_token_ids"] = list(self._requests[index // self._n].prompt)
        numbered = [{"index": i, "text": str(texts[i])} | choice for i, choice in enumerate(choices)]
        more = {"metadata": {"weight_version": self._weights()}} if self._service.settings.weights_folder else {}
        return JsonAnswer(self._head | {"choices": numbered, "usage": self._usage()} | more)

    async def events(self) -> AsyncIterator[dict[str, Any] | None]:
        """Chunks of a stream; None when nothing came for a while."""
        usage = {"usage": None} if self._body.include_usage else {}
        async for item in self.generation.updates(self._service.settings.keep_alive_seconds):
            if item is None:
                yield None
                continue
            index, choice = self._add(*item)
            yield self._head | {"choices": [{"index": index} | choice]} | usage
        if self._body.include_usage:
            yield self._head | {"choices": [], "usage": self._usage()}

    def _weights(self) -> str:
        """What a trainer called the weights that computed this; all outputs are of one version."""
        return self._service.weights.get(max(self._versions), "")

    def _add(self, position: int, update: Update) -> tuple[int, dict[str, Any]]:
        self._versions.add(update.weights_version)
        self._cached[position] = max(self._cached[position], update.cached_tokens)
        index = position * self._n + update.index
        return index, self._outputs[index].add(update)

    def _usage(self) -> dict[str, Any]:
        prompt_tokens = sum(len(request.prompt) for request in self._requests)
        return Usage(prompt_tokens, sum(o.output_tokens for o in self._outputs), sum(self._cached)).body()


def _extend(choice: dict[str, Any], more: dict[str, Any]) -> None:
    """Append an output's next choice (without text) to the ones before."""
    if not choice:
        choice |= more
        return
    for key, values in (more["logprobs"] or {}).items():
        choice["logprobs"][key] += values
    if "token_ids" in more:
        choice["token_ids"] += more["token_ids"]
    choice |= {key: more[key] for key in ("finish_reason", "stop_reason")}
