"""A model's output as the parts of an assistant message, while it arrives or at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nano3.data.chat.parsing.call_tags import BY_TEMPLATE
from nano3.data.chat.parsing.reasoning import Piece, ReasoningParser, StrayClosings
from nano3.data.chat.parsing.tool_calls import ToolCallDelta, ToolCallParser, new_call_id, tags_of


@dataclass(frozen=True)
class Delta:
    """News of one part of the message; the other parts are empty."""

    content: str = ""
    reasoning: str = ""
    tool_call: ToolCallDelta | None = None


class GrowingText:
    """Text that comes in many pieces, put together when it is read; equal to any other of the same text."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    def add(self, text: str) -> None:
        """Append a piece."""
        self._parts.append(text)

    def __str__(self) -> str:
        self._parts = ["".join(self._parts)]
        return self._parts[0]

    def __repr__(self) -> str:
        return repr(str(self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GrowingText) and str(self) == str(other)

    __hash__ = None  # type: ignore[assignment]


@dataclass
class ToolCall:
    """One complete call."""

    id: str
    name: str
    written: GrowingText = field(default_factory=GrowingText)

    @property
    def arguments(self) -> str:
        """JSON text of an object."""
        return str(self.written)


@dataclass
class ParsedOutput:
    """All deltas of an output together."""

    answer: GrowingText = field(default_factory=GrowingText)
    thinking: GrowingText = field(default_factory=GrowingText)
    tool_calls: list[ToolCall] = field(default_factory=list)

    @property
    def content(self) -> str:
        """The answer."""
        return str(self.answer)

    @property
    def reasoning(self) -> str:
        """The thinking part."""
        return str(self.thinking)

    def add(self, delta: Delta) -> None:
        """Append one delta."""
        self.answer.add(delta.content)
        self.thinking.add(delta.reasoning)
        if (call := delta.tool_call) is None:
            return
        if call.id is not None:
            self.tool_calls.append(ToolCall(call.id, call.name or ""))
        self.tool_calls[call.index].written.add(call.arguments)


class OutputParser:
    """Reasoning, content and tool calls out of text that arrives in pieces cut anywhere.

    The deltas together are the same whatever the cuts. What may still become a tag is held back.
    """

    def __init__(
        self,
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        thinking_open: bool,
        parse_tools: bool = True,
        parse_thinking: bool = True,
        loose_calls_in_thinking: bool = True,
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        """Begin with an output's first character.

        Args:
            tools: function definitions in OpenAI form; a call of a function that is not among them is a call all the
                same, its values typed by their looks.
            thinking_open: the prompt ends inside a thinking part (`nano3.data.chat.encoder.thinking_open`).
            parse_tools: read tool calls; else they are text.
            parse_thinking: separate reasoning; else all text is content, tags included.
            loose_calls_in_thinking: a call without <tool_call> before it, or with other white space between its tags
                than the template's line break, ends an open thinking part too.
            new_id: gives each call its id.
        """
        tags = tags_of(tools) if parse_tools else None
        ending = tags if loose_calls_in_thinking or tags is None else BY_TEMPLATE
        self._reasoning = ReasoningParser(thinking_open=thinking_open, calls=ending) if parse_thinking else None
        self._strays = StrayClosings() if parse_thinking else None
        self._calls = ToolCallParser(tools, new_id) if parse_tools else None

    def push(self, text: str) -> list[Delta]:
        """What is certain now that `text` has arrived."""
        pieces = self._reasoning.push(text) if self._reasoning else [Piece("content", text)]
        return _merged(self._deltas(pieces))

    def finish(self, cut_off: bool = False) -> list[Delta]:
        """The rest, at the end of the output; `cut_off` at its limit, a call that is open stays open."""
        deltas = self._deltas(self._reasoning.finish() if self._reasoning else [])
        if self._calls:
            deltas += self._without_strays(map(_delta, self._calls.finish(cut_off)))
        if self._strays:
            deltas.append(Delta(content=self._strays.finish()))
        return _merged(deltas)

    def _deltas(self, pieces: Iterable[Piece]) -> list[Delta]:
        deltas: list[Delta] = []
        for part, text in pieces:
            if part == "reasoning":
                deltas.append(Delta(reasoning=text))
            else:
                deltas += self._without_strays(map(_delta, self._calls.push(text) if self._calls else [text]))
        return deltas

    def _without_strays(self, deltas: Iterable[Delta]) -> Iterable[Delta]:
        for delta in deltas:
            yield replace(delta, content=self._strays.push(delta.content)) if self._strays and delta.content else delta


def parse_output(
    text: str, tools: Sequence[Mapping[str, Any]] | None = None, *, cut_off: bool = False, **options: Any
) -> ParsedOutput:
    """A whole output at once.

    Args:
        text: of the output.
        tools: as `OutputParser`.
        cut_off: the output ended at its limit: the arguments of a call that is open then are no whole JSON.
        options: the others of `OutputParser`.
    """
    parser = OutputParser(tools, **options)
    output = ParsedOutput()
    for delta in parser.push(text) + parser.finish(cut_off):
        output.add(delta)
    return output


def _delta(news: str | ToolCallDelta) -> Delta:
    return Delta(content=news) if isinstance(news, str) else Delta(tool_call=news)


def _merged(deltas: Iterable[Delta]) -> list[Delta]:
    """The same news with as few deltas as possible; a call's id and name stay apart from its arguments."""
    merged: list[Delta] = []
    for delta in deltas:
        joined = _join(merged[-1], delta) if merged else None
        if joined:
            merged[-1] = joined
        elif delta != Delta():
            merged.append(delta)
    return merged


def _join(first: Delta, second: Delta) -> Delta | None:
    """Both as one, None when they tell of different parts."""
    one, two = first.tool_call, second.tool_call
    if one and two and one.index == two.index and one.id is None and two.id is None:
        return Delta(tool_call=replace(one, arguments=one.arguments + two.arguments))
    if one or two:
        return None
    if bool(first.content) == bool(second.content):
        return Delta(content=first.content + second.content, reasoning=first.reasoning + second.reasoning)
    return None
