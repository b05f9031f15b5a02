"""Messages and tools of a conversation in the one form that chat templates expect."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nano3.config.errors import UserError

ROLES = ("system", "developer", "user", "assistant", "tool")
RAW = "arguments"
"""The one parameter of a call whose arguments do not read as an object."""


def normal_messages(messages: Sequence[Mapping[str, Any]], *, keep_broken: bool = True) -> list[dict[str, Any]]:
    """Messages in the one form that templates expect: content a string, arguments an object, role system for
    developer, reasoning under both of its names.

    Args:
        messages: in OpenAI form.
        keep_broken: arguments whose text is no JSON object, as those of a call that its limit cut off, are shown to
            the model as they are, in one parameter named `arguments`: an answer that went wrong must not end the
            conversation. Else they are refused, since nobody should train on them.

    Raises:
        UserError: messages out of form.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UserError("messages is empty or no list; give at least one message")
    return [_message(message, f"messages[{i}]", keep_broken) for i, message in enumerate(messages)]


def normal_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """Tools as {"type": "function", "function": ...}.

    Raises:
        UserError: a tool without a name, or with parameters that are no JSON schema object.
    """
    normal = []
    for i, tool in enumerate(tools or ()):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not _is_name(function.get("name")):
            raise UserError(f"tools[{i}] names no function; give {{'type': 'function', 'function': {{'name': ...}}}}")
        if not isinstance(function.get("parameters") or {}, Mapping):
            raise UserError(f"tools[{i}] ({function['name']}): parameters is no JSON schema object")
        normal.append(dict(tool) if "function" in tool else {"type": "function", "function": dict(tool)})
    return normal


def _message(message: Mapping[str, Any], where: str, keep_broken: bool) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise UserError(f"{where} is no object with role and content")
    role = message.get("role")
    if role not in ROLES:
        raise UserError(f"{where}: role is {role!r}; it must be one of {', '.join(ROLES)}")
    normal = {**message, "role": "system" if role == "developer" else role}
    normal["content"] = _text(message.get("content"), f"{where}.content")
    if role != "assistant":
        return normal
    for name in ("reasoning_content", "reasoning"):
        if message.get(name):
            reasoning = _text(message[name], f"{where}.{name}")
            return _with_calls(normal | {"reasoning_content": reasoning, "reasoning": reasoning}, where, keep_broken)
    return _with_calls(normal, where, keep_broken)


def _with_calls(message: dict[str, Any], where: str, keep_broken: bool) -> dict[str, Any]:
    calls = message.pop("tool_calls", None)
    if not calls:
        return message
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise UserError(f"{where}.tool_calls is no list")
    places = (f"{where}.tool_calls[{i}]" for i in range(len(calls)))
    return message | {"tool_calls": [_call(*entry, keep_broken) for entry in zip(calls, places, strict=True)]}


def _call(call: Mapping[str, Any], where: str, keep_broken: bool) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not _is_name(function.get("name")):
        raise UserError(f"{where} names no function")
    arguments = _arguments(function.get("arguments"), f"{where} ({function['name']}): arguments", keep_broken)
    outer = call if "function" in call else {}
    return {**outer, "type": "function", "function": {**function, "arguments": arguments}}


def _arguments(arguments: Any, where: str, keep_broken: bool) -> dict[str, Any]:
    text = arguments if isinstance(arguments, str) else None
    problem = "is not a JSON object"
    if text is not None:
        try:
            arguments = json.loads(text.strip() or "{}")
        except (ValueError, RecursionError) as error:
            problem = f"is not JSON: {one_line(error)}"
    if arguments is None:
        return {}
    if isinstance(arguments, Mapping):
        return dict(arguments)
    if text is not None and keep_broken:
        return {RAW: text}
    raise UserError(f"{where} {problem}")


def _text(content: Any, where: str) -> str:
    """Content as one string; parts are put on lines of their own."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise UserError(f"{where} is of type {type(content).__name__}; give a string or a list of text parts")
    return "\n".join(_part(part, f"{where}[{i}]") for i, part in enumerate(content))


def _part(part: Any, where: str) -> str:
    text = part.get("text") if isinstance(part, Mapping) else part
    if not isinstance(text, str):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        raise UserError(f"{where} is of type {kind}; only text parts can be read")
    return text


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and bool(name.strip())


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__
