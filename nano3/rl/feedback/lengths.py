"""Lengths of a response's two parts in tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nano3.data.tokens.tokenizer import Tokenizer
from nano3.data.tokens.vocabulary import CHAT_TOKENS, THINK_TOKENS


class Lengths(NamedTuple):
    """In tokens."""

    think: int
    """Up to and with the tag that closes the thinking part; all tokens where it was never closed."""
    answer: int
    """What follows, without the token that ends the turn."""


def part_lengths(ids: Sequence[int] | np.ndarray, thinking_open: bool, tokenizer: Tokenizer) -> Lengths:
    """Of the tokens after the prompt of a response of one turn.

    Args:
        ids: (n,) tokens, those that closed a thinking budget included.
        thinking_open: the prompt ends inside a thinking part; else one opens where the response says <think>.
        tokenizer: of the policy.
    """
    tokens = np.asarray(ids, np.int64)
    ends = [tokenizer.eos_id, tokenizer.token_id(CHAT_TOKENS[1])]
    if len(tokens) and tokens[-1] in [end for end in ends if end is not None]:
        tokens = tokens[:-1]
    opening, closing = (tokenizer.token_id(tag) for tag in THINK_TOKENS)
    if not thinking_open and (opening is None or opening not in tokens):
        return Lengths(0, len(tokens))
    closed = np.flatnonzero(tokens == closing) if closing is not None else tokens[:0]
    think = int(closed[0]) + 1 if len(closed) else len(tokens)
    return Lengths(think, len(tokens) - think)
