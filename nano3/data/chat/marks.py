"""Marks inside rendered conversations: where text is cut before it is encoded, and what the model itself writes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

MARK = "\ufdd0"
"""A noncharacter. Alone: cut here. Followed by the next noncharacters: the signs below."""
OWN_MARK, WRITTEN, END_WRITTEN = MARK + "\ufdd1", MARK + "\ufdd2", MARK + "\ufdd3"
"""A MARK that stood in the text, and the ends of what a template's generation block encloses."""
_SIGNS = re.compile(f"({WRITTEN}|{END_WRITTEN}|{MARK}(?!{OWN_MARK[1]}))")


class Piece(NamedTuple):
    """Text between two marks."""

    text: str
    written: bool
    """The model writes it (it stands in a generation block)."""
    start: int
    """Its place in the marked text."""


def pieces(marked: str) -> list[Piece]:
    """The text between the marks, in order; joined, the text as it reads."""
    found, written, start = [], False, 0
    for part in _SIGNS.split(marked):
        if part in (WRITTEN, END_WRITTEN):
            written = part == WRITTEN
        elif part and part != MARK:
            found.append(Piece(part.replace(OWN_MARK, MARK), written, start))
        start += len(part)
    return found


def without_blocks(marked: str) -> str:
    """The marked text without the ends of generation blocks; the cuts stay."""
    return marked.replace(WRITTEN, "").replace(END_WRITTEN, "")


class Protection:
    """Cuts special tokens that are written in messages, so that they are encoded as text."""

    def __init__(self, tokens: Iterable[str]) -> None:
        """Protect `tokens` of two letters or more. (One letter alone cannot be cut.)"""
        tokens = list(tokens)
        rests: dict[str, list[str]] = {}
        for token in tokens:
            if len(token) > 1:
                rests.setdefault(token[0], []).append(re.escape(token[1:]))
        found = "|".join(f"{re.escape(first)}(?={'|'.join(rest)})" for first, rest in rests.items())
        self._first_letters = re.compile(found or "(?!)")
        self.tokens = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")
        """Finds them in a text that no mark cuts."""

    def mark(self, value: Any) -> Any:
        """The value with a mark inside each special token that its strings spell out."""
        if isinstance(value, str):
            return self._first_letters.sub(lambda found: found[0] + MARK, value.replace(MARK, OWN_MARK))
        if isinstance(value, Mapping):
            return {self.mark(key): self.mark(inner) for key, inner in value.items()}
        return [self.mark(inner) for inner in value] if isinstance(value, list | tuple) else value
