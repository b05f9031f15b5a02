"""Long texts a piece at a time: a list of all words of one takes many times the memory of the text."""

from __future__ import annotations

import re
from collections.abc import Iterator

PIECE = 1 << 20
"""Characters of a piece, up to the end of its last word."""
WHITE_SPACE = re.compile(r"\s")
_WORD_END = re.compile(r"\W")


def pieces(text: str, border: re.Pattern[str] = WHITE_SPACE) -> Iterator[str]:
    """A text in pieces that begin and end at a border, so that no word is cut; a short one is one piece."""
    place = 0
    while place < len(text):
        found = border.search(text, place + PIECE)
        end = found.start() if found else len(text)
        yield text[place:end]
        place = end


def count_words(text: str) -> int:
    """Words between white space."""
    return sum(len(piece.split()) for piece in pieces(text))


def word_pieces(text: str) -> Iterator[str]:
    """A text in pieces that do not cut runs of letters and digits."""
    return pieces(text, _WORD_END)
