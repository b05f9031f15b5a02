"""Records of chat data sets as conversations: OpenAI's messages, prompt and completion, ShareGPT and Alpaca."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nano3.config.errors import UserError
from nano3.data.chat.messages import normal_messages, normal_tools, one_line
from nano3.reading import parse_json

CLOSE, OPEN = "</think>", "<think>"
FORM = "no conversation"
"""Reason of a record that cannot be read."""
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "assistant",
}
TURNS = ("messages", "conversations", "conversation")
"""Fields that hold a conversation's turns."""


class RowError(UserError):
    """A record or conversation that is not trained on: `reason`, by which these are counted, and what is wrong."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Conversation:
    """A conversation to train on, in the form that chat templates expect."""

    name: str
    """Where it came from, for messages: the file and the record in it."""
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)
    variables: dict[str, Any] = field(default_factory=dict)
    """Of the chat template, as `chat_template_kwargs` of the record gives them."""


def read_conversation(record: Mapping[str, Any], name: str) -> Conversation:
    """The conversation of a record in one of these forms; reasoning that stands in tags before an answer is taken out.

    - `messages`: OpenAI's, with `reasoning_content` (or `reasoning`), `tool_calls` and, beside it, `tools`;
    - `prompt` and `completion`: each a text or a list of messages;
    - `conversations`: ShareGPT's turns with `from` and `value`, and `system` beside them;
    - `instruction` and `output`: Alpaca's; an `input` follows the instruction after a blank line.

    `tools` and lists of messages may be JSON texts, as columns of Parquet files often are.

    Raises:
        RowError: the record has none of these forms, or its messages or tools are out of form.
    """
    try:
        messages = normal_messages(_messages(record), keep_broken=False)
        tools = normal_tools(_listed(record.get("tools"), "tools"))
    except RowError:
        raise
    except (UserError, TypeError, ValueError) as error:
        raise RowError(FORM, one_line(error)) from error
    variables = record.get("chat_template_kwargs") or {}
    if not isinstance(variables, Mapping):
        raise RowError(FORM, "chat_template_kwargs is no object")
    return Conversation(name, [_with_reasoning(message) for message in messages], tools, _given(variables))


def _messages(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    for name in TURNS:
        if record.get(name) is not None:
            turns = _listed(record[name], name)
            system = record.get("system")
            first = [{"role": "system", "content": system}] if isinstance(system, str) and system else []
            return first + [_turn(turn, f"{name}[{i}]") for i, turn in enumerate(turns)]
    if record.get("prompt") is not None and record.get("completion") is not None:
        return [*_side(record["prompt"], "user"), *_side(record["completion"], "assistant")]
    if isinstance(record.get("instruction"), str) and record.get("output") is not None:
        return _alpaca(record)
    fields = ", ".join(sorted(map(str, record))) or "none"
    forms = "no messages, no prompt with a completion, no conversations and no instruction with an output"
    raise RowError(FORM, f"{forms}; fields there: {fields}")


def _alpaca(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Instruction, with its input, and output as messages."""
    system, extra = record.get("system"), record.get("input")
    asked = f"{record['instruction']}\n\n{extra}" if isinstance(extra, str) and extra.strip() else record["instruction"]
    first = [{"role": "system", "content": system}] if isinstance(system, str) and system else []
    return [*first, {"role": "user", "content": asked}, {"role": "assistant", "content": record["output"]}]


def _side(value: Any, role: str) -> list[dict[str, Any]]:
    """A prompt or completion as messages."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return [_turn(turn, f"{role}[{i}]") for i, turn in enumerate(_listed(value, "prompt or completion"))]


def _turn(turn: Any, where: str) -> dict[str, Any]:
    """One message; columns of Parquet files hold None for what a message does not have."""
    if not isinstance(turn, Mapping):
        raise RowError(FORM, f"{where} is no object with role and content")
    if "role" in turn or "from" not in turn:
        return _given(turn)
    role = SHAREGPT_ROLES.get(turn["from"])
    if role is None:
        raise RowError(FORM, f"{where}: from is {turn['from']!r}; known: {', '.join(SHAREGPT_ROLES)}")
    if turn["from"] == "function_call":
        return {"role": role, "tool_calls": _calls(turn.get("value"), where)}
    return {**_given({key: value for key, value in turn.items() if key not in ("from", "value")}), "role": role,
            "content": turn.get("value")}  # fmt: skip


def _calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Calls of a ShareGPT turn: JSON of one or several objects with name and arguments."""
    found = parse_json(value) if isinstance(value, str) else value
    calls = found if isinstance(found, list) else [found]
    if not all(isinstance(call, Mapping) for call in calls):
        raise RowError(FORM, f"{where}: value is no call with name and arguments")
    return [{"type": "function", "function": dict(call)} for call in calls]


def _listed(value: Any, name: str) -> list[Any]:
    if isinstance(value, str):
        value = parse_json(value) if value.strip() else []
    if value is None:
        return []
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise RowError(FORM, f"{name} is no list")
    return list(value)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """The message with reasoning that it wrote as `<think>...</think>` before its words in the field for it."""
    content = message["content"].lstrip()
    if message["role"] != "assistant" or message.get("reasoning_content") or not content.startswith(OPEN):
        return message
    inner, close, words = content.removeprefix(OPEN).partition(CLOSE)
    if not close:
        return message  # nano3.data.chat.structure refuses it
    message = {**message, "content": words.lstrip("\n")}
    if not inner.strip():
        return message
    reasoning = inner.strip("\n")
    return {**message, "reasoning_content": reasoning, "reasoning": reasoning}
