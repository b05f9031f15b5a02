"""Texts too long to be held and encoded at once, in parts: each becomes a document of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO, AnyStr

LONGEST = 1 << 24
"""Bytes of a text, or characters of a record, above which it is cut: about four million tokens."""
SHORT = 1 << 14
_LINE = re.compile(r"\n(?=[^\W\d_])")
LOOKED_AT = 1 << 16
"""Bytes before the end of a part in which a good place for the cut is looked for."""


def byte_parts(stream: IO[bytes], longest: int = LONGEST) -> Iterator[bytes]:
    """The bytes of a stream, at most `longest` at a time; a single part, perhaps empty, if all of them fit in it."""
    rest = stream.read(longest + 1)
    while len(rest) > longest:
        cut = _place(rest, longest, b"\n", b" ")
        while cut > 1 and rest[cut] & 0xC0 == 0x80:  # inside a character
            cut -= 1
        yield rest[:cut]
        rest = rest[cut:] + stream.read(longest + 1 - (len(rest) - cut))
    yield rest


def text_parts(text: str, longest: int = LONGEST) -> Iterator[str]:
    """A text in parts of at most `longest` characters."""
    while len(text) > longest:
        cut = _place(text[: longest + 1], longest, "\n", " ")
        yield text[:cut]
        text = text[cut:]
    yield text


def short_pieces(text: str) -> Iterator[str]:
    """A text cut as soon after SHORT characters as there is a line that begins with a letter, so that no token is cut.

    The trainer of a vocabulary holds 256 texts at once, at about 40 bytes for one.
    """
    start = 0
    while len(text) - start > SHORT:
        found = _LINE.search(text, start + SHORT, start + (SHORT << 6))
        stop = found.end() if found else start + (SHORT << 6)
        yield text[start:stop]
        start = stop
    if start < len(text) or not text:
        yield text[start:]


def _place(data: AnyStr, longest: int, line_break: AnyStr, space: AnyStr) -> int:
    """Where the first `longest` bytes or characters end best: before a line that begins with a letter, else before a
    line, else before a space, else anywhere.

    Split patterns cut before such a line too, so the parts have the tokens of the whole.
    """
    first = max(1, longest - LOOKED_AT)
    place = data.rfind(line_break, first, longest)
    while place >= 0 and not data[place + 1 : place + 2].isalpha():
        place = data.rfind(line_break, first, place)
    if place < 0:
        place = data.rfind(line_break, first, longest)
    if place >= 0:
        return place + 1
    place = data.rfind(space, first, longest)
    return place if place >= 0 else longest
