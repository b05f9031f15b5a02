"""The parts of an answer in the order in which they are written, for APIs that number them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from nano3.data.chat.parsing.output_parser import Delta, GrowingText

Kind = Literal["reasoning", "content", "call"]


@dataclass
class Segment:
    """One part: a stretch of thinking, a stretch of text, or a tool call."""

    kind: Kind
    index: int
    """Position in the answer."""
    call_id: str = ""
    name: str = ""
    """The function that is called."""
    written: GrowingText = field(default_factory=GrowingText)
    last: bool = False
    """The answer ended within it."""

    @property
    def text(self) -> str:
        """Its text; of a call the arguments' JSON, which ends anywhere where the answer was cut off."""
        return str(self.written)


class Step(NamedTuple):
    """What happened to a part."""

    what: Literal["open", "more", "close"]
    segment: Segment
    text: str = ""
    """What was added to it."""


class Segments:
    """Puts the deltas of an answer in order: one part is open at a time, and a part that is closed stays closed."""

    def __init__(self) -> None:
        self.all: list[Segment] = []
        self._open: Segment | None = None

    def add(self, delta: Delta) -> Iterator[Step]:
        """Steps that a delta comes to."""
        if delta.reasoning:
            yield from self._write("reasoning", delta.reasoning)
        if delta.content:
            yield from self._write("content", delta.content)
        if (call := delta.tool_call) is not None:
            if call.id is not None:
                yield from self._begin("call", call.id, call.name or "")
            if call.arguments:
                yield from self._write("call", call.arguments)

    def end(self) -> Iterator[Step]:
        """Steps at the end of the answer."""
        if self._open is not None:
            self._open.last = True
        yield from self._close()

    def _close(self) -> Iterator[Step]:
        if self._open is not None:
            yield Step("close", self._open)
            self._open = None

    def _begin(self, kind: Kind, call_id: str = "", name: str = "") -> Iterator[Step]:
        yield from self._close()
        self._open = Segment(kind, len(self.all), call_id, name)
        self.all.append(self._open)
        yield Step("open", self._open)

    def _write(self, kind: Kind, text: str) -> Iterator[Step]:
        if self._open is None or self._open.kind != kind:
            yield from self._begin(kind)
        assert self._open is not None
        self._open.written.add(text)
        yield Step("more", self._open, text)
