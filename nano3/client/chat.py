"""Chat completions: what an answer says, its reasoning apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class ChatAnswer:
    """One answer."""

    text: str
    """Without reasoning and white space at its ends."""
    reasoning: str = ""
    finish_reason: str = ""
    """`stop`, `length`, or what else the server says."""
    prompt_tokens: int = 0
    """As the server counts; 0: it does not."""
    completion_tokens: int = 0
    """Reasoning among them."""
    choice: dict[str, Any] = field(default_factory=dict)
    """As it came, for what else is in it, such as log-probabilities."""


def read_chat(body: Any) -> ChatAnswer:
    """The first choice of a chat completion.

    Raises:
        ValueError: it is none.
    """
    try:
        choice = body["choices"][0]
        message = choice["message"]
        content = message.get("content") or ""
        given = message.get("reasoning_content") or message.get("reasoning") or ""
    except (LookupError, TypeError, AttributeError):
        raise ValueError("no message in it") from None
    if not isinstance(content, str) or not isinstance(given, str):
        raise ValueError("its message is no text")
    apart = bool(given.strip()) and not content.lstrip().startswith(OPEN)  # a tag in the answer is then its own
    reasoning, text = ("", content.strip()) if apart else split_reasoning(content)
    usage = body.get("usage")
    return ChatAnswer(
        text, given.strip() or reasoning, str(choice.get("finish_reason") or ""),
        _count(usage, "prompt_tokens"), _count(usage, "completion_tokens"), choice,
    )  # fmt: skip


def split_reasoning(content: str) -> tuple[str, str]:
    """Reasoning and answer of a text.

    The opening tag may be missing, as where a chat template writes it; so may the closing one, in a cut answer:
    all is reasoning then.
    """
    before, closed, after = content.partition(CLOSE)
    if closed:
        return before.strip().removeprefix(OPEN).strip(), after.strip()
    if content.lstrip().startswith(OPEN):
        return content.strip().removeprefix(OPEN).strip(), ""
    return "", content.strip()


def _count(usage: Any, name: str) -> int:
    value = usage.get(name) if isinstance(usage, Mapping) else 0
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
