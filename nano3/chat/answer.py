"""How long an answer may be, and how one that is missing or cut off is reported."""

from __future__ import annotations

PLAIN_TOKENS, CHAT_TOKENS = 512, 8192
"""Most new tokens of a continued text and of an answer, where none are asked for."""


def no_answer(thought: bool, cut_off: bool, tokens: int | None) -> str:
    """Why there is nothing to read: the thinking took all tokens, or the model ended at once."""
    what = "no answer after the thinking" if thought else "empty answer"
    return f"{what} ({cut_off_text(tokens)})" if cut_off else what


def cut_off_text(tokens: int | None) -> str:
    """That an answer reached the most tokens it may have."""
    return f"cut off at {tokens:,} tokens" if tokens else "cut off: it may be no longer"
