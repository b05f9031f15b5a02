"""Separate thinking from answer while the text arrives."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from nano3.data.chat.parsing.call_tags import CallTags, length_before_call
from nano3.data.chat.parsing.partial import GAP, begun

Part = Literal["reasoning", "content"]

OPENING = re.compile(rf"{GAP}<think>")
OPENING_BEGUN = re.compile(GAP + begun("<think>"))
CLOSING = re.compile(r"\n?</think>")
CLOSING_BEGUN = re.compile(r"\n?" + begun("</think>"))
STRAY = re.compile(rf"{GAP}</think>")
STRAY_BEGUN = re.compile(GAP + begun("</think>"))


class Piece(NamedTuple):
    """Some text, and where it belongs."""

    part: Part
    text: str


class ReasoningParser:
    """Cuts output into thinking and the rest.

    Thinking ends at </think>, or where a tool call begins; one line break on either side of a tag goes with it. A
    <think> at the very start of the output opens thinking when the prompt did not. All other text is kept as it is.
    """

    def __init__(self, *, thinking_open: bool, calls: CallTags | None = None) -> None:
        """Begin with an output's first character.

        Args:
            thinking_open: the prompt ends inside a thinking part.
            calls: a tool call of these needs no </think> before it.
        """
        self.part: Part = "reasoning" if thinking_open else "content"
        self._calls = calls
        self._at_start = True
        self._drop_break = False
        self._held = ""

    def push(self, text: str) -> list[Piece]:
        """Pieces that are certain now that `text` has arrived."""
        self._held += text
        return self._pieces(final=False)

    def finish(self) -> list[Piece]:
        """The rest, at the end of the output."""
        return self._pieces(final=True)

    def _pieces(self, final: bool) -> list[Piece]:
        if self._at_start and not self._open(final):
            return []
        pieces: list[Piece] = []
        if self.part == "reasoning":
            self._drop_one_break()
            pieces.append(Piece("reasoning", self._reasoning(final)))
        if self.part == "content":
            self._drop_one_break()
            pieces.append(Piece("content", self._take(len(self._held))))
        return [piece for piece in pieces if piece.text]

    def _open(self, final: bool) -> bool:
        """Read a leading <think>; False while it cannot be told whether there is one."""
        if opening := OPENING.match(self._held):
            self.part, self._drop_break = "reasoning", True
            self._held = self._held[opening.end() :]
        elif not final and OPENING_BEGUN.fullmatch(self._held):
            return False
        self._at_start = False
        return True

    def _reasoning(self, final: bool) -> str:
        """Thinking that is certain; switches to content at its end."""
        closing = CLOSING.search(self._held)
        call = self._call(final)
        if closing and (call is None or closing.start() <= call):
            text = self._take(closing.start())
            self._held = self._held[len(closing[0]) :]
            self.part, self._drop_break = "content", True
            return text
        if call is not None:
            self.part = "content"
            return self._take(call)
        return self._take(len(self._held) if final else self._certain())

    def _call(self, final: bool) -> int | None:
        """Where a tool call begins in the held text, white space before it included."""
        if self._calls is None:
            return None
        call = self._calls.find_call(self._held, final)
        return call.start if call else None

    def _certain(self) -> int:
        """Length of the held text that can be no part of a tag to come."""
        closing = CLOSING_BEGUN.search(self._held)
        length = closing.start() if closing else len(self._held)
        return min(length, length_before_call(self._held)) if self._calls is not None else length

    def _take(self, length: int) -> str:
        """Cut this much off the held text."""
        text, self._held = self._held[:length], self._held[length:]
        return text

    def _drop_one_break(self) -> None:
        """Remove the line break that belongs to the tag before the held text, as soon as it can be seen."""
        if self._drop_break and self._held:
            self._held, self._drop_break = self._held.removeprefix("\n"), False


class StrayClosings:
    """Leaves out each </think> that closes nothing, where no words stand before it in the answer."""

    def __init__(self) -> None:
        self._held: str = ""
        self._words = self._drop_break = False

    def push(self, text: str) -> str:
        """Text of the answer that is certain now."""
        if self._words:
            return text
        self._held += text
        while True:
            if self._drop_break and self._held:
                self._held, self._drop_break = self._held.removeprefix("\n"), False
            stray = STRAY.match(self._held)
            if stray is None:
                break
            self._held, self._drop_break = self._held[stray.end() :], True
        if STRAY_BEGUN.fullmatch(self._held):
            return ""
        self._words = True
        return self.finish()

    def finish(self) -> str:
        """The rest."""
        text, self._held = self._held, ""
        return text
