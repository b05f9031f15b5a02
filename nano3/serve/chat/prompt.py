"""Chat requests to prompts and to what the engine is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from nano3.config.errors import UserError
from nano3.data.chat import template as chat_template
from nano3.data.chat.encoder import ChatPrompt, TooLongError
from nano3.data.chat.parsing.json_schema import check_schema
from nano3.engine.request import Grammar, Request, Sampling, ThinkingBudget
from nano3.serve.chat.thinking_fields import thinking_of
from nano3.serve.sampling import grammar_of, sampling_of
from nano3.serve.schemas import ChatRequest, NamedTool, TokenizeRequest
from nano3.serve.service import Service, new_id
from nano3.serve.structured.tool_grammar import call_grammar, tag_ids, watched_grammar
from nano3.serve.transport.errors import ApiError

SWITCHES = ("enable_thinking", "truncate_history_thinking")
RESERVED = (*chat_template.RESERVED, "max_length")


@dataclass(frozen=True)
class ChatPlan:
    """A chat request, ready to run and to be read."""

    request: Request
    prompt: ChatPrompt
    tools: list[dict[str, Any]]
    """Tools whose calls are parsed; none: calls are text."""
    one_call: bool
    """Only the first call of an answer counts."""


def plan_chat(service: Service, body: ChatRequest, *, shorten: bool = False) -> ChatPlan:
    """Everything a chat request comes to before it runs; takes a while for a long prompt.

    Args:
        service: the engine and its limits.
        body: the request.
        shorten: more tokens of answer may be asked for than fit beside the prompt; then as many as fit are written.

    Raises:
        ApiError: the conversation, its length or its fields are wrong (400).
    """
    tools = [] if body.tool_choice == "none" else _tools(body)
    prompt = make_prompt(service, body, tools, service.most_characters)
    max_tokens = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    ids = service.cut(prompt.ids, body.truncate_prompt_tokens, max_tokens)
    if ids != prompt.ids:
        prompt = replace(prompt, ids=ids, cache_at=())
    if shorten and max_tokens is not None and len(prompt.ids) + max_tokens > service.max_context:
        max_tokens = None
    field = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    service.check_length(len(prompt.ids), max_tokens, "messages", field)
    request = Request(
        new_id("chatcmpl"), prompt.ids, _sampling(service, body, prompt, tools, max_tokens), body.n or 1,
        prompt.cache_at,
    )  # fmt: skip
    return ChatPlan(request, prompt, tools, body.parallel_tool_calls is False)


def _tools(body: ChatRequest) -> list[dict[str, Any]]:
    tools = plain(body.tools)
    for i, tool in enumerate(tools):
        try:
            check_schema(tool["function"].get("parameters"), f"tools[{i}].function.parameters")
        except ValueError as error:
            raise ApiError(400, str(error), param=f"tools[{i}].function.parameters", code="invalid_value") from error
    return tools


def make_prompt(
    service: Service, body: ChatRequest | TokenizeRequest, tools: list[dict[str, Any]], most_characters: int
) -> ChatPrompt:
    """The prompt of a conversation. Raises ApiError (400)."""
    variables = _template_variables(body)
    try:
        return service.chat.encode(
            plain(body.messages),
            tools or None,
            body.add_generation_prompt is not False,
            max_length=most_characters,
            **variables,
        )
    except TooLongError as error:
        raise ApiError(400, str(error), param="messages", code="context_length_exceeded") from error
    except UserError as error:
        raise ApiError(400, str(error), param="messages", code="invalid_value") from error


def _template_variables(body: ChatRequest | TokenizeRequest) -> dict[str, Any]:
    """What the template is told: chat_template_kwargs, and over them the fields of the same names."""
    variables = dict(body.chat_template_kwargs or {})
    _check_switches(variables, "chat_template_kwargs")
    for name in RESERVED:
        if name in variables:
            raise ApiError(400, f"chat_template_kwargs: {name} cannot be set here", param="chat_template_kwargs",
                           code="invalid_value")  # fmt: skip
    if body.truncate_history_thinking is not None:
        variables["truncate_history_thinking"] = body.truncate_history_thinking
    enabled = thinking_of(body).enabled
    if body.enable_thinking is not None or (enabled is not None and variables.get("enable_thinking") is None):
        variables["enable_thinking"] = enabled
    return variables


def _check_switches(variables: dict[str, Any], where: str) -> None:
    """Raises ApiError (400) where a switch is no boolean: to a template "false" is as good as true."""
    for name in SWITCHES:
        if not isinstance(variables.get(name), bool | None):
            raise ApiError(400, f"{where}.{name}: must be true or false", param=f"{where}.{name}", code="invalid_value")
    inner = variables.get("chat_template_kwargs")
    if isinstance(inner, dict):
        _check_switches(inner, f"{where}.chat_template_kwargs")


def _sampling(
    service: Service, body: ChatRequest, prompt: ChatPrompt, tools: list[dict[str, Any]], max_tokens: int | None
) -> Sampling:
    budget = thinking_of(body).budget
    return sampling_of(
        body,
        max_tokens=max_tokens,
        end_ids=service.turn_end_ids,
        log_probs=(body.top_logprobs or 0) if body.logprobs else None,
        grammar=_grammar(body, prompt.thinking_open, tools, tag_ids(service.tokenizer)),
        thinking=None if budget is None else ThinkingBudget(budget, open=prompt.thinking_open),
    )


def _grammar(
    body: ChatRequest, after_thinking: bool, tools: list[dict[str, Any]], tags: dict[str, int]
) -> Grammar | None:
    answer = grammar_of(body, after_thinking)
    if not tools:
        return answer
    if isinstance(body.tool_choice, NamedTool):
        wanted = body.tool_choice.function.name
        tools = [tool for tool in tools if tool["function"]["name"] == wanted]
    if answer is not None and (answer.kind == "lark" or body.tool_choice not in (None, "auto")):
        raise ApiError(400, "a required tool call and another form of output exclude each other", param="tool_choice",
                       code="invalid_value")  # fmt: skip
    several = body.parallel_tool_calls is not False
    try:
        if body.tool_choice in (None, "auto") and answer is None:
            return watched_grammar(tools, after_thinking=after_thinking, tags=tags)
        return call_grammar(tools, several=several, after_thinking=after_thinking, answer=answer, tags=tags)
    except UserError as error:
        raise ApiError(400, f"tools: {error}", param="tools", code="invalid_value") from error


def plain(models: Sequence[Any] | None) -> list[dict[str, Any]]:
    """Messages or tools as the client sent them."""
    return [model.model_dump(exclude_unset=True) for model in models or ()]
