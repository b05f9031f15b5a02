"""What every vocabulary of ours shares: the tokens of chats, and how text becomes letters of bytes."""

from __future__ import annotations

from typing import Any

CHAT_TOKENS = ("<|im_start|>", "<|im_end|>")
THINK_TOKENS = ("<think>", "</think>")
"""Ordinary added tokens, not special ones: a decoder that hides special tokens still shows where reasoning ends."""


def byte_level_split(pre_tokenizers: Any, pattern: Any) -> Any:
    """Pre-tokenizer that cuts text by a regular expression, then maps bytes to letters."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
