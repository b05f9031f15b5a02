"""Requests of the Messages API as chat requests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nano3.serve.anthropic.schemas import Block, CountRequest, MessagesRequest, MessagesTool, MessagesTurn, plain
from nano3.serve.chat.single_answer import chat_request
from nano3.serve.schemas import ChatRequest

NAMES = {
    r"function\.parameters": "input_schema",
    r"response_format\.json_schema\.schema": "output_config.format.schema",
    r"^response_format": "output_config.format",
}
"""Fields of chat requests that errors may name, and what they are called here."""


def to_chat(body: CountRequest) -> ChatRequest:
    """The chat request that a request of the Messages API stands for.

    Thinking is off unless the request switches it on, as with Anthropic: clients that do not ask for it read the first
    block as text.

    Raises:
        ApiError: fields that contradict each other (400).
    """
    thinking = body.thinking is not None and body.thinking.type != "disabled"
    fields: dict[str, Any] = {
        "messages": [*_system(body), *(part for message in body.messages for part in _messages(message))],
        "tools": [_tool(tool) for tool in body.tools] if body.tools else None,
        "enable_thinking": thinking,
        "thinking_budget": body.thinking.budget_tokens if thinking and body.thinking else None,
        **_tool_choice(body),
        **_format(body),
    }
    if isinstance(body, MessagesRequest):
        fields |= {
            "max_tokens": body.max_tokens,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "top_k": body.top_k,
            "stop": body.stop_sequences or None,
        }
    return chat_request(fields)


def _system(body: CountRequest) -> list[dict[str, Any]]:
    return [{"role": "system", "content": plain(body.system)}] if body.system else []


def _messages(message: MessagesTurn) -> Iterator[dict[str, Any]]:
    """Chat messages of one message: results of tools are messages of their own there."""
    if isinstance(message.content, str):
        yield {"role": message.role, "content": message.content}
    elif message.role == "assistant":
        yield _assistant(message.content)
    else:
        yield from _user(message.role, message.content)


def _user(role: str, blocks: list[Block]) -> Iterator[dict[str, Any]]:
    texts: list[str] = []
    for block in blocks:
        if block.type == "text":
            texts.append(block.text or "")
            continue
        if texts:
            yield {"role": role, "content": "\n".join(texts)}
            texts = []
        result = plain(block.content)
        yield {
            "role": "tool",
            "tool_call_id": block.tool_use_id,
            "content": f"Error: {result}" if block.is_error else result,
        }
    if texts or not blocks:
        yield {"role": role, "content": "\n".join(texts)}


def _assistant(blocks: list[Block]) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "\n".join(b.text or "" for b in blocks if b.type == "text"),
    }
    if thinking := "\n".join(block.thinking or "" for block in blocks if block.type == "thinking"):
        message["reasoning"] = thinking
    calls = [
        {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": block.input or {}}}
        for block in blocks
        if block.type == "tool_use"
    ]
    return message | {"tool_calls": calls} if calls else message


def _tool(tool: MessagesTool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
    function = {name: value for name, value in function.items() if value is not None}
    return {"type": "function", "function": function | ({"strict": True} if tool.strict else {})}


def _tool_choice(body: CountRequest) -> dict[str, Any]:
    choice = body.tool_choice
    if choice is None:
        return {}
    named = {"type": "function", "function": {"name": choice.name}}
    wanted: Any = named if choice.type == "tool" else "required" if choice.type == "any" else choice.type
    return {"tool_choice": wanted, "parallel_tool_calls": False if choice.disable_parallel_tool_use else None}


def _format(body: CountRequest) -> dict[str, Any]:
    if body.output_config is None or body.output_config.format is None:
        return {}
    schema = body.output_config.format.schema_
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "output", "schema": schema}}}
