"""Long texts a piece at a time: a list of all words of one takes many times the memory of the text."""

from __future__ import annotations

import re
from collections.abc import Iterator

PIECE = 1 << 20
"""Characters of a piece, up to the end of its last word."""
LONGEST_WORD = 1 << 16
"""Characters from which on `word_pieces` may cut a word: pieces are then bounded whatever the text is."""
WHITE_SPACE = re.compile(r"\s")
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
    """Words between white space."""
    return sum(len(piece.split()) for piece in pieces(text))


def word_pieces(text: str) -> Iterator[str]:
    """A text in pieces that do not cut runs of letters and digits, unless they are longer than `LONGEST_WORD`."""
    return pieces(text, _WORD_END, LONGEST_WORD)
