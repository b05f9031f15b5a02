"""Requests of the Responses API as chat requests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nano3.serve.chat.single_answer import chat_request
from nano3.serve.responses.schemas import Item, Parts, ResponsesRequest, ResponsesTool, TextFormat
from nano3.serve.schemas import ChatRequest

NAMES = {
    r"tools\[(\d+)\]\.function": r"tools[\1]",
    r"response_format\.json_schema\.schema": "text.format.schema",
    r"^response_format": "text.format",
    r"^messages": "input",
    r"^max_tokens": "max_output_tokens",
}
"""Fields of chat requests that errors may name, and what they are called here."""


def to_chat(body: ResponsesRequest) -> ChatRequest:
    """The chat request that a request of the Responses API stands for.

    Raises:
        ApiError: fields that contradict each other (400).
    """
    tools = [_tool(tool) for tool in functions(body)]
    choice: Any = body.tool_choice
    if choice is not None and not isinstance(choice, str):
        choice = {"type": "function", "function": {"name": choice.name}}
    return chat_request({
        "messages": _messages(body),
        "tools": tools or None,
        "tool_choice": choice,
        "parallel_tool_calls": body.parallel_tool_calls,
        "max_tokens": body.max_output_tokens,
        "response_format": _format(body.text.format) if body.text else None,
        "reasoning_effort": body.reasoning.effort if body.reasoning else None,
        "enable_thinking": body.enable_thinking,
        "thinking_budget": body.thinking_budget,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "min_p": body.min_p,
        "seed": body.seed,
    })  # fmt: skip


def functions(body: ResponsesRequest) -> list[ResponsesTool]:
    """The tools that the model is shown. Agents send others along with every request; those cannot be called."""
    return [tool for tool in body.tools or () if tool.type == "function"]


def _messages(body: ResponsesRequest) -> list[dict[str, Any]]:
    messages = [{"role": "system", "content": body.instructions}] if body.instructions else []
    if isinstance(body.input, str):
        return [*messages, {"role": "user", "content": body.input}] if body.input else messages
    return [*messages, *_from_items(body.input)]


def _from_items(items: list[Item]) -> Iterator[dict[str, Any]]:
    """Chat messages: reasoning, text and calls that follow each other are one message of the assistant."""
    turn: dict[str, Any] = {}
    for item in items:
        part = _of_assistant(item)
        if turn and (part is None or not _continues(turn, item)):
            yield turn
            turn = {}
        if part is None:
            yield _of_others(item)
            continue
        calls = [*turn.get("tool_calls", ()), *part.get("tool_calls", ())]
        turn = {"role": "assistant", "content": None, **turn, **part}
        turn |= {"tool_calls": calls} if calls else {}
    if turn:
        yield turn


def _continues(turn: dict[str, Any], item: Item) -> bool:
    """Whether an item belongs to the turn that is open: it holds reasoning, then text, then calls."""
    if item.type == "reasoning":
        return False
    return item.type == "function_call" or (turn["content"] is None and "tool_calls" not in turn)


def _of_assistant(item: Item) -> dict[str, Any] | None:
    """What an item adds to a turn of the assistant; None for items of others."""
    if item.type == "reasoning":
        return {"reasoning": _text(item.content) or _text(item.summary)}
    if item.type == "function_call":
        function = {"name": item.name, "arguments": item.arguments or "{}"}
        return {"tool_calls": [{"id": item.call_id, "type": "function", "function": function}]}
    if item.type == "message" and item.role == "assistant":
        return {"content": _text(item.content)}
    return None


def _of_others(item: Item) -> dict[str, Any]:
    if item.type == "function_call_output":
        return {"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)}
    return {"role": item.role, "content": _text(item.content)}


def _text(parts: Parts | None) -> str:
    if isinstance(parts, str):
        return parts
    return "\n".join(part.text if part.text is not None else part.refusal or "" for part in parts or ())


def _tool(tool: ResponsesTool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    function = {name: value for name, value in function.items() if value is not None}
    return {"type": "function", "function": function | ({"strict": True} if tool.strict else {})}


def _format(form: TextFormat | None) -> dict[str, Any] | None:
    if form is None or form.type != "json_schema":
        return {"type": form.type} if form else None
    return {"type": "json_schema", "json_schema": {"name": form.name or "output", "schema": form.schema_}}
