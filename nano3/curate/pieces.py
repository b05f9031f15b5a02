"""Long texts a piece at a time: a list of all words of one takes many times the memory of the text."""

from __future__ import annotations

import re
from collections.abc import Iterator

PIECE = 1 << 20
"""Characters of a piece, up to the end of its last word."""
SHORT = 2_000
"""Characters of a text below which a list of its words costs less than counting without one."""
LONGEST_WORD = 1 << 16
"""Characters from which on `word_pieces` may cut a word: pieces are then bounded whatever the text is."""
WHITE_SPACE = re.compile(r"\s")
_OUTSIDE = bytes(byte < 128 and chr(byte).isspace() for byte in range(256))
"""By byte of UTF-8: 1 where it is white space, 0 where it is of a word."""
_WIDE_SPACES = [chr(code) for code in range(128, 1 << 16) if chr(code).isspace()]
_WORD_END = re.compile(r"\W")


def pieces(text: str, border: re.Pattern[str] = WHITE_SPACE, longest: int | None = None) -> Iterator[str]:
    """A text in pieces that begin and end at a border, so that no word is cut, unless it has `longest` characters
    beyond a piece; a short text is one piece."""
    place = 0
    while place < len(text):
        most = len(text) if longest is None else place + PIECE + longest
        found = border.search(text, place + PIECE, most)
        end = found.start() if found else min(most, len(text))
        yield text[place:end]
        place = end


def count_words(text: str) -> int:
    """Words between white space: as many as `str.split` finds."""
    if len(text) < SHORT:
        return len(text.split())
    return sum(map(_words_of_piece, pieces(text)))


def _words_of_piece(text: str) -> int:
    """Without making them: a word ends where white space, or the end, comes after something else."""
    if not text.isascii() and any(space in text for space in _WIDE_SPACES):
        return len(text.split())
    outside = text.encode("utf-8", "surrogatepass").translate(_OUTSIDE)
    return outside.count(b"\0\1") + outside.endswith(b"\0")


def word_pieces(text: str) -> Iterator[str]:
    """A text in pieces that do not cut runs of letters and digits, unless they are longer than `LONGEST_WORD`."""
    return pieces(text, _WORD_END, LONGEST_WORD)
