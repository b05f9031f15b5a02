"""One row a user turn, and reasoning control: rows without reasoning or with a part of it (report, section 3.1)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nano3.config.sft import ReasoningConfig
from nano3.data.chat.conversation import Conversation
from nano3.data.tokens.tokenizer import Tokenizer

KEPT, STRIPPED, TRUNCATED = "kept", "stripped", "truncated"
"""What became of a row's reasoning."""
REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class Turn:
    """A row before it is encoded."""

    conversation: Conversation
    """Up to the end of a user turn: the last user message and all that answers it."""
    number: int
    """Of the turn in its conversation, from 0."""
    last_only: bool
    """Only what answers the last user message is trained on."""
    reasoning: str = ""
    """KEPT, STRIPPED or TRUNCATED; empty for a row without reasoning."""


def user_turns(conversation: Conversation) -> Iterator[Turn]:
    """The rows of a conversation.

    Templates drop the reasoning of earlier turns, so each turn is a row, which ends with it. A conversation without
    reasoning reads the same at every turn: it is one row, and all of its answers are trained on. So is one whose
    template variables keep all reasoning (`truncate_history_thinking`: false).
    """
    messages = conversation.messages
    users = [i for i, message in enumerate(messages) if message["role"] == "user"]
    kept = conversation.variables.get("truncate_history_thinking") is False
    if kept or not any(_reads_otherwise_later(message) for message in messages[: users[-1]]):
        yield Turn(conversation, 0, last_only=False)
        return
    for number, end in enumerate([*users[1:], len(messages)]):
        yield Turn(replace(conversation, messages=messages[:end]), number, last_only=True)


def _reads_otherwise_later(message: dict[str, Any]) -> bool:
    """Whether a template renders an assistant's message otherwise once the next user message is there."""
    if message["role"] != "assistant":
        return False
    return bool(message.get("reasoning_content")) or (
        bool(message.get("tool_calls")) and message["content"] != message["content"].strip()
    )


class ReasoningControl:
    """Takes the reasoning from some rows and cuts it short in others, so that both can be asked of the model.

    Which rows these are depends on the seed and the row's name alone.
    """

    def __init__(self, cfg: ReasoningConfig, tokenizer: Tokenizer, seed: int) -> None:
        self.cfg, self._tokenizer, self._seed = cfg, tokenizer, seed

    def apply(self, turn: Turn) -> Turn:
        """The row with its reasoning kept, stripped (the form of enable_thinking = false) or cut to a budget, after
        which the answer follows as it was."""
        messages = turn.conversation.messages
        begin = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=-1) + 1
        if not any(message.get("reasoning_content") for message in messages[begin:]):
            return turn
        draw, choice = self._draws(turn)
        if draw < self.cfg.strip_fraction:
            return _changed(turn, begin, [_without(message) for message in messages[begin:]], STRIPPED)
        if draw < self.cfg.strip_fraction + self.cfg.truncate_fraction:
            return self._truncated(turn, begin, choice)
        return replace(turn, reasoning=KEPT)

    def _draws(self, turn: Turn) -> tuple[float, float]:
        """Two numbers in [0, 1)."""
        key = f"{self._seed}\0{turn.conversation.name}\0{turn.number}"
        digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        first, second = (int.from_bytes(digest[i : i + 8], "little") / 2**64 for i in (0, 8))
        return first, second

    def _truncated(self, turn: Turn, begin: int, choice: float) -> Turn:
        """The first reasoning of the row cut to one of the budgets that are shorter than it; as it is if none is."""
        messages = turn.conversation.messages
        place = next(i for i in range(begin, len(messages)) if messages[i].get("reasoning_content"))
        ids = self._tokenizer.encode(messages[place]["reasoning_content"])
        budgets = [budget for budget in self.cfg.budgets if budget < len(ids)]
        if not budgets:
            return replace(turn, reasoning=KEPT)
        kept = self._tokenizer.decode(ids[: budgets[int(choice * len(budgets))]]).rstrip(REPLACEMENT)
        cut = (
            {**messages[place], "reasoning_content": kept, "reasoning": kept}
            if kept.strip()
            else _without(messages[place])
        )
        return _changed(turn, begin, [*messages[begin:place], cut, *messages[place + 1 :]], TRUNCATED)


def _without(message: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key not in ("reasoning_content", "reasoning")}


def _changed(turn: Turn, begin: int, answer: Sequence[dict[str, Any]], reasoning: str) -> Turn:
    messages = [*turn.conversation.messages[:begin], *answer]
    return replace(turn, conversation=replace(turn.conversation, messages=messages), reasoning=reasoning)
