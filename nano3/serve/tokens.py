"""Tokens as clients see them: their text, their bytes, their logprobs."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterable, Sequence
from typing import Any

from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.request import Token

LOWEST = -9999.0
"""Stands for a probability of zero, which JSON cannot carry as a logarithm."""


def finite(log_prob: float) -> float:
    """A logprob that JSON can carry."""
    return max(log_prob, LOWEST) if not math.isnan(log_prob) else LOWEST


class TokenTexts:
    """Text and bytes of single tokens, looked up once each."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes: dict[int, bytes] = {}
        self._letters = {letter: byte for byte, letter in _byte_letters().items()}

    def bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; a special token stands for its name."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._look_up(token_id)
        return known

    def text(self, token_id: int) -> str:
        """A token's text; one that is part of a character is written `bytes:\\xe2\\x82`, as OpenAI does."""
        raw = self.bytes(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def _look_up(self, token_id: int) -> bytes:
        # A token of part of a character cannot be decoded alone, so its vocabulary entry is read letter by letter.
        text = self._tokenizer.decode([token_id])
        entry = self._tokenizer.inner.id_to_token(token_id) or ""
        if "\ufffd" in text and entry and all(letter in self._letters for letter in entry):
            return bytes(self._letters[letter] for letter in entry)
        return text.encode()


def _byte_letters() -> dict[int, str]:
    """The printable letter that byte-level vocabularies write for each byte (GPT-2's table)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {byte: chr(byte) for byte in plain}
    for i, byte in enumerate(byte for byte in range(256) if byte not in letters):
        letters[byte] = chr(256 + i)
    return letters


def chat_logprobs(texts: TokenTexts, tokens: Iterable[Token]) -> list[dict[str, Any]]:
    """`logprobs.content` of a chat answer: one entry a token."""
    return [
        _entry(texts, token.id, token.log_prob)
        | {"top_logprobs": [_entry(texts, token_id, log_prob) for token_id, log_prob in token.top]}
        for token in tokens
    ]


def _entry(texts: TokenTexts, token_id: int, log_prob: float) -> dict[str, Any]:
    raw = texts.bytes(token_id)
    return {"token": texts.text(token_id), "bytes": list(raw), "logprob": finite(log_prob)}


class CompletionLogprobs:
    """`logprobs` of a plain completion: four lists that grow token by token."""

    def __init__(self, texts: TokenTexts, alternatives: int) -> None:
        self._texts = texts
        self._alternatives = alternatives
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def add(self, tokens: Sequence[Token]) -> dict[str, Any]:
        """The lists for some more tokens; a prompt's first token has no logprob."""
        lists: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token in tokens:
            first = math.isnan(token.log_prob)
            lists["tokens"].append(self._texts.text(token.id))
            lists["token_logprobs"].append(None if first else finite(token.log_prob))
            lists["top_logprobs"].append(None if first else self._top(token))
            lists["text_offset"].append(self._offset)
            self._offset += len(self._decoder.decode(self._texts.bytes(token.id)))
        return lists

    def _top(self, token: Token) -> dict[str, float]:
        """Best first; where two tokens read the same, the more probable one stands; the chosen one is always in."""
        top: dict[str, float] = {}
        for token_id, log_prob in (*token.top[: self._alternatives], (token.id, token.log_prob)):
            top.setdefault(self._texts.text(token_id), finite(log_prob))
        return top
