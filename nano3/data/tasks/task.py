"""What a generator makes, and how an answer is read."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
"""A message in OpenAI's form; an assistant's may have `reasoning_content` and `tool_calls`."""


@dataclass(frozen=True)
class Draft:
    """A task as its generator draws it."""

    content: str
    """What the task is about, without its wording: tasks of one content never lie on both sides of the split. Empty for
    one of a few fixed conversations, which are for training only."""
    prompt: Sequence[Message]
    """The conversation to answer."""
    truth: Any
    """What the check needs to know, as JSON values."""
    solution: Sequence[Message]
    """Messages that solve it, with reasoning; tool results stand between them."""
    tools: Sequence[dict[str, Any]] = ()
    """Function definitions in OpenAI's form."""


@dataclass(frozen=True)
class Task:
    """One task. All values are plain JSON."""

    generator: str
    """Name of its generator."""
    id: str
    """Differs between tasks of other prompts, and is the same in every process."""
    content: str
    """Hash of what it is about; tasks that differ only in wording share it."""
    level: int
    """Difficulty; what it counts, the generator says."""
    prompt: list[Message]
    """The conversation to answer."""
    tools: list[dict[str, Any]]
    """Function definitions in OpenAI's form."""
    truth: Any
    """What the check needs to know."""
    solution: list[Message]
    """Messages that solve it, with reasoning; tool results stand between them."""

    def row(self) -> dict[str, Any]:
        """The task with its solution as a row of chat data: `messages`, `tools` where there are any, and `task`."""
        row: dict[str, Any] = {"messages": [*self.prompt, *self.solution]}
        if self.tools:
            row["tools"] = self.tools
        about = {"generator": self.generator, "id": self.id, "level": self.level, "truth": self.truth}
        return row | {"task": about}


def no_results(truth: Any, replies: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Tool results of a task without tools: calls get an error."""
    del truth
    return [tool_result(call, "error: there are no tools") for call in calls_of(replies)]


@dataclass(frozen=True)
class Generator:
    """A kind of tasks."""

    name: str
    """As in `generate:NAME`."""
    summary: str
    """What is asked, in a line."""
    level: str
    """What a level counts."""
    levels: tuple[int, ...]
    """Levels that are drawn unless others are asked for."""
    hardest: int
    """Highest level that can be asked for; the lowest is the first of `levels`."""
    make: Callable[[random.Random, int], Draft]
    """A task of a level."""
    check: Callable[[Any, Sequence[Mapping[str, Any]]], float]
    """Reward of an answer, from 0 to 1 (solved): of the truth and of all messages since the prompt. An assistant's
    content is read without its reasoning."""
    respond: Callable[[Any, Sequence[Mapping[str, Any]]], list[Message]] = field(default=no_results)
    """Results of the tool calls in the last message, of the truth and of all messages since the prompt."""


def user(text: str) -> Message:
    """A user's message."""
    return {"role": "user", "content": text}


def answer(reasoning: str, content: str) -> Message:
    """An assistant's message with its reasoning."""
    return {"role": "assistant", "reasoning_content": reasoning, "content": content}


def call(reasoning: str, number: int, name: str, **arguments: Any) -> Message:
    """An assistant's message that calls a tool; `number` makes the call's id."""
    function = {"name": name, "arguments": json.dumps(arguments)}
    calls = [{"id": f"call_{number}", "type": "function", "function": function}]
    return {"role": "assistant", "reasoning_content": reasoning, "content": "", "tool_calls": calls}


def tool_result(call: Mapping[str, Any], content: str) -> Message:
    """The message that answers a tool call."""
    return {"role": "tool", "tool_call_id": call.get("id", ""), "content": content}


def calls_of(replies: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Tool calls of the last message."""
    return list(replies[-1].get("tool_calls") or ()) if replies else []


def final_text(replies: Sequence[Mapping[str, Any]]) -> str | None:
    """Content of the last message without white space around it; None where that is no plain answer."""
    last = replies[-1] if replies else {}
    content = last.get("content")
    if last.get("role") != "assistant" or last.get("tool_calls") or not isinstance(content, str):
        return None
    return content.strip()


def same_text(truth: Any, replies: Sequence[Mapping[str, Any]]) -> float:
    """1 where the answer is the truth's text and nothing else, white space aside."""
    text = final_text(replies)
    return float(text is not None and text.split() == str(truth).split())


def content_hash(text: str) -> str:
    """16 hexadecimal digits, the same on every machine."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
