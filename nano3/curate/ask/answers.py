"""Answers of a model as steps get them, and those that no step can use."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from nano3.client.chat import ChatAnswer

CUT, EMPTY, DECLINED, COPY, SILENT, REFUSED, KEPT_BACK, NOTHING = (
    "answer cut", "empty answer", "refused by the model", "copy of the prompt", "no answer from the server",
    "request refused by the server", "kept back by the provider's filter of contents", "nothing written",
)  # fmt: skip
"""Why a document is dropped."""
FILTERED = "content_filter"
"""Reason to finish of an answer of which the provider kept back a part or all."""
LONGEST_REFUSAL = 400
"""Characters; a longer answer that begins like a refusal goes on to do what was asked."""
SHORTEST_COPY = 40
"""Characters of a prompt's own words that no answer says by chance."""
_UNABLE = (
    r"(?:i (?:can't|can’t|cannot|can not|won't|won’t|am unable|am not able|must decline|have to decline)|"
    r"(?:i'm|i’m) (?:unable|not able))"
)
_REGRET = r"(?:(?:i am|i'm|i’m) (?:very |really |so )?sorry|sorry|i apologi[sz]e|unfortunately)"
_TASK = (
    r"help|assist|comply|fulfil|provide|generat|creat|writ|rewrit|rephras|translat|summar|answer|process|continue|"
    r"complet|respond|request|do (?:that|this)"
)
_REFUSAL = re.compile(  # regret alone is a text's own: somebody must be unable, or a request be spoken of
    rf"(?:{_UNABLE}|as an ai\b|as a language model|{_REGRET}\b.{{0,60}}?\b{_UNABLE})\b.{{0,80}}?\b(?:{_TASK})|"
    rf"{_REGRET}\b.{{0,60}}?\b(?:(?:this|that|your|the) request|i can (?:help|assist))",
    re.IGNORECASE | re.DOTALL,
)


class DropError(Exception):
    """The document goes no further, for this reason."""

    def __init__(self, reason: str, reply: str = "") -> None:
        """`reason`: of few kinds, the report counts by it; `reply`: what the model or its server said, shown with the
        document."""
        super().__init__(reason)
        self.reason, self.reply = reason, reply


@dataclass(frozen=True)
class Answer:
    """What a model wrote."""

    text: str
    """Without its reasoning."""
    reasoning: str = ""
    finish_reason: str = ""
    completion_tokens: int = 0
    """Of answer and reasoning, as the server counts; 0: it does not."""
    choice: dict[str, Any] = field(default_factory=dict)
    """As the server gave it, for log-probabilities and the like."""


def usable(chat: ChatAnswer, message: str, fixed: str) -> Answer:
    """The answer to a message.

    Args:
        chat: what came.
        message: what was asked.
        fixed: the longest stretch of the prompt that is the same in all messages.

    Raises:
        DropError: it is empty, refuses or was filtered, or repeats the prompt.
    """
    if chat.finish_reason == FILTERED:
        raise DropError(KEPT_BACK, chat.text)
    if not chat.text:
        raise DropError(EMPTY, chat.reasoning)
    if is_refusal(chat.text):
        raise DropError(DECLINED, chat.text)
    if is_copy(chat.text, message, fixed):
        raise DropError(COPY, chat.text)
    return Answer(chat.text, chat.reasoning, chat.finish_reason, chat.completion_tokens, chat.choice)


def is_refusal(text: str) -> bool:
    """Whether a short answer begins as those do that decline the task."""
    return len(text) <= LONGEST_REFUSAL and _REFUSAL.match(text) is not None


def is_copy(text: str, message: str, fixed: str) -> bool:
    """Whether an answer is the message again, or holds its instructions."""
    answer, asked, own = (" ".join(one.split()) for one in (text, message, fixed))
    return answer == asked or (len(own) >= SHORTEST_COPY and own in answer)
