"""Text of a growing output, piece by piece."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

from nano3.data.tokens.tokenizer import Tokenizer

WINDOW = 8
"""Tokens decoded again with each new one, for decoders whose text depends on the tokens before."""


class TextStream:
    """One output's tokens to text that can be shown at once: whole characters, nothing that may become a stop string.

    All pieces together are `tokenizer.decode(ids, skip_special=True)` up to the stop string. A token costs the same
    at any length of output.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = (), include_stop: bool = False) -> None:
        """`stop`: strings that end the text, which then ends before them, or after them with `include_stop`."""
        self.stopped: str | None = None
        """The stop string that ended the text."""
        kind = _decoding(tokenizer)
        self._special = kind.special
        self._decoder: _Decoder = _Bytes(kind.bytes_of) if kind.is_byte_level else _Window(kind)
        self._stops = [_Stop(text) for text in stop]
        self._include_stop = include_stop
        self._held = ""

    def push(self, token_id: int, hidden: bool = False, check_stop: bool = True) -> str:
        """Text that this token makes safe to show.

        Args:
            token_id: next token of the output.
            hidden: the token has no text (it stopped the output).
            check_stop: False lets stop strings pass as text (min_tokens).
        """
        if hidden or self.stopped is not None or token_id in self._special:
            return ""
        return self._release(self._decoder.push(token_id), check_stop)

    def flush(self) -> str:
        """The text still held back, at the end of the output; a character cut in two becomes U+FFFD."""
        if self.stopped is not None:
            return ""
        text = self._release(self._decoder.finish(), check_stop=True) + self._held
        self._held = ""
        return text

    def _release(self, text: str, check_stop: bool) -> str:
        if not self._stops:
            return text
        if not check_stop:
            text, self._held = self._held + text, ""
            for stop in self._stops:
                stop.matched = 0
            return text
        for position, character in enumerate(text):
            ended = [stop.text for stop in self._stops if stop.ends_with(character)]
            if ended:
                return self._stop(max(ended, key=len), self._held + text[: position + 1])
        text = self._held + text
        keep = len(text) - max(stop.matched for stop in self._stops)
        self._held = text[keep:]
        return text[:keep]

    def _stop(self, stop: str, text: str) -> str:
        self.stopped, self._held = stop, ""
        return text if self._include_stop else text[: len(text) - len(stop)]


class _Stop:
    """How much of a stop string the text ends with (Knuth, Morris and Pratt 1977): constant work a character."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0
        self._fallback = _fallbacks(text)

    def ends_with(self, character: str) -> bool:
        n = self.matched
        while n and self.text[n] != character:
            n = self._fallback[n - 1]
        self.matched = n + (self.text[n] == character)
        return self.matched == len(self.text)


@lru_cache(maxsize=256)
def _fallbacks(text: str) -> tuple[int, ...]:
    """For each beginning of the text, how much of the text it ends with; one table for all outputs of a request."""
    found = [0]
    for character in text[1:]:
        n = found[-1]
        while n and text[n] != character:
            n = found[n - 1]
        found.append(n + (text[n] == character))
    return tuple(found)


class _Decoder(Protocol):
    def push(self, token_id: int) -> str: ...

    def finish(self) -> str: ...


class _Bytes:
    """Byte-level vocabularies: a token is a string of bytes whatever stands around it."""

    def __init__(self, bytes_of: _TokenBytes) -> None:
        self._bytes_of = bytes_of
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._utf8.decode(self._bytes_of[token_id])

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


class _Window:
    """Any other decoder: the text that a token adds to the few tokens before it.

    Tokens of single bytes wait for the end of their run, which decides whether they are characters.
    """

    def __init__(self, kind: _Decoding) -> None:
        self._kind = kind
        self._shown: list[int] = []
        self._waiting: list[int] = []

    def push(self, token_id: int) -> str:
        if self._kind.tokenizer.inner.id_to_token(token_id) is None:
            return ""
        if token_id in self._kind.byte_ids:
            self._waiting.append(token_id)
            return ""
        return self.finish() + self._add([token_id])

    def finish(self) -> str:
        waiting, self._waiting = self._waiting, []
        return self._add(waiting) if waiting else ""

    def _add(self, ids: list[int]) -> str:
        decode = self._kind.tokenizer.decode
        before, after = decode(self._shown, skip_special=True), decode(self._shown + ids, skip_special=True)
        self._shown = (self._shown + ids)[-WINDOW:]
        return after[len(before) :]


@dataclass(frozen=True)
class _Decoding:
    """How a tokenizer decodes; found once."""

    tokenizer: Tokenizer

    @cached_property
    def special(self) -> frozenset[int]:
        """Ids that `skip_special` leaves out."""
        added = self.tokenizer.inner.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

    @cached_property
    def is_byte_level(self) -> bool:
        return type(self.tokenizer.inner.decoder).__name__ == "ByteLevel"

    @cached_property
    def bytes_of(self) -> _TokenBytes:
        """Of each token of a byte-level vocabulary."""
        return _TokenBytes(self.tokenizer)

    @cached_property
    def byte_ids(self) -> frozenset[int]:
        """Tokens of one byte each (`<0x0A>`)."""
        vocabulary = self.tokenizer.inner.get_vocab()
        return frozenset(i for token, i in vocabulary.items() if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", token))


class _TokenBytes(dict[int, bytes]):
    """Bytes of a token, looked up in the tokenizer the first time; none for ids that it does not have."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._token = tokenizer.inner.id_to_token

    def __missing__(self, token_id: int) -> bytes:
        token = self._token(token_id)
        found = self[token_id] = b"" if token is None else token_bytes(token)
        return found


def _decoding(tokenizer: Tokenizer) -> _Decoding:
    """Kept on the tokenizer, like its second encoder: a stream must not walk a vocabulary of 131072 each time."""
    found = tokenizer.__dict__.get("_decoding")
    if found is None:
        found = tokenizer.__dict__["_decoding"] = _Decoding(tokenizer)
    return found


def token_bytes(token: str) -> bytes:
    """Bytes of an entry of a byte-level vocabulary; an added token that is no spelling of bytes stands for itself."""
    try:
        return bytes(map(_BYTES.__getitem__, token))
    except KeyError:
        return token.encode()


def _byte_letters() -> dict[str, int]:
    """The letter that stands for each byte (GPT-2's table): printable Latin-1 for itself, the others from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_letters()
