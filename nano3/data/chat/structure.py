"""What a conversation must be like to be trained on (report, section 3.1.3: structural filters)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nano3.data.chat.conversation import CLOSE, OPEN, Conversation, RowError

ROLES, TOOLS, TAGS, EMPTY = "roles out of order", "tool calls", "thinking tags", "empty answer"
"""Reasons."""
FOLLOWS: dict[str, tuple[str, ...]] = {
    "": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "call": ("tool",),
    "tool": ("tool", "assistant"),
}
"""Which roles may follow a message; `call`: an assistant's with tool calls; empty: the beginning."""


def check_structure(conversation: Conversation) -> None:
    """Refuse a conversation that no assistant has had.

    Roles take turns and the last word is the assistant's; tools that are called are defined, and every call has its
    result before the assistant goes on; an answer says something; thinking tags stand only around reasoning, so that
    nothing is trained that opens a thinking part and does not close it.

    Raises:
        RowError: which message is wrong, and how.
    """
    for check in _CHECKS:
        check(conversation)


def _check_roles(conversation: Conversation) -> None:
    before = ""
    for i, message in enumerate(conversation.messages):
        role = message["role"]
        if role == "system":
            continue
        if role not in FOLLOWS[before]:
            place = f"follows {'a tool call' if before == 'call' else before}" if before else "comes first"
            raise RowError(ROLES, f"messages[{i}]: {role} {place}; {' or '.join(FOLLOWS[before])} may")
        before = "call" if message.get("tool_calls") else role
    if before not in ("assistant", "call"):
        raise RowError(ROLES, "the last message is not the assistant's: there is no answer to learn")


def _check_tools(conversation: Conversation) -> None:
    defined = {tool["function"]["name"] for tool in conversation.tools}
    for i, message in enumerate(conversation.messages):
        calls = message.get("tool_calls") or ()
        for call in calls:
            name = call["function"]["name"]
            if name not in defined:
                known = ", ".join(sorted(defined)) or "none"
                raise RowError(TOOLS, f"messages[{i}] calls {name}, which is not among the tools: {known}")
        if calls and i + 1 < len(conversation.messages):
            _check_results(calls, conversation.messages[i + 1 :], i)


def _check_results(calls: Sequence[dict[str, Any]], following: Sequence[dict[str, Any]], place: int) -> None:
    results = []
    for message in following:
        if message["role"] != "tool":
            break
        results.append(message.get("tool_call_id"))
    if len(results) != len(calls):
        raise RowError(TOOLS, f"messages[{place}] makes {len(calls)} tool calls and has {len(results)} results")
    ids = [call.get("id") for call in calls]
    if all(ids) and all(results) and set(ids) != set(results):
        raise RowError(TOOLS, f"messages[{place}]: the results' tool_call_id are not the ids of its calls")


def _check_tags(conversation: Conversation) -> None:
    for i, message in enumerate(conversation.messages):
        if message["role"] != "assistant":
            continue
        for name in ("content", "reasoning_content"):
            found = next((tag for tag in (OPEN, CLOSE) if tag in message.get(name, "")), None)
            if found:
                raise RowError(TAGS, f"messages[{i}].{name} holds {found} where no reasoning begins or ends")


def _check_answers(conversation: Conversation) -> None:
    for i, message in enumerate(conversation.messages):
        if message["role"] == "assistant" and not message["content"].strip() and not message.get("tool_calls"):
            raise RowError(EMPTY, f"messages[{i}] of the assistant says nothing and calls no tool")


_CHECKS: tuple[Callable[[Conversation], None], ...] = (_check_roles, _check_tools, _check_tags, _check_answers)
