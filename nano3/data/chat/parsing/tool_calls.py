"""Read XML tool calls while the text arrives.

    <tool_call>
    <function=name>
    <parameter=key>
    value
    </parameter>
    </function>
    </tool_call>

Values may hold tags of their own, and models leave closing tags out: `call_tags.ValueReader` tells where a value ends.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

from nano3.data.chat.parsing.call_tags import (
    BLOCK_END,
    BLOCK_END_BEGUN,
    CLOSING_BEGUN,
    MOST_JUNK,
    SPARE_CLOSINGS,
    STEP,
    TAG_BEGUN,
    CallTags,
    ValueReader,
    before_space,
    begun_call,
    call_tags,
    length_before_call,
)
from nano3.data.chat.parsing.partial import SPACES
from nano3.data.chat.parsing.typed_values import dump, json_value, parameter_types, reads_as

CUT_HEAD = "<tool_"
"""Where an output that its limit cut off ends in as much of a call's head as this, the head is not shown."""


@dataclass(frozen=True)
class ToolCallDelta:
    """News of one tool call."""

    index: int
    """Which of the output's calls."""
    id: str | None = None
    """With a call's first delta only, as the name."""
    name: str | None = None
    arguments: str = ""
    """More of the arguments' JSON text."""


def tags_of(tools: Sequence[Mapping[str, Any]] | None) -> CallTags:
    """The tags of calls of these tools."""
    functions = (tool.get("function", tool) for tool in tools or ())
    return call_tags(frozenset(name for function in functions if (name := function.get("name"))))


def new_call_id() -> str:
    """An id that nobody can guess."""
    return f"call_{secrets.token_hex(12)}"


class ToolCallParser:
    """Cuts an answer into content and tool calls.

    Content is kept as it is, but for white space before and between calls and after the last one, up to 256 characters
    of it. A <tool_call> that no readable function follows is content.
    """

    def __init__(
        self, tools: Sequence[Mapping[str, Any]] | None = None, new_id: Callable[[], str] = new_call_id
    ) -> None:
        """Begin with an answer's first character.

        Args:
            tools: function definitions in OpenAI form: their schemas decide the types of values.
            new_id: gives each call its id.
        """
        self._types = parameter_types(tools)
        self._tags = tags_of(tools)
        self._new_id = new_id
        self._read: Callable[[bool], bool] = self._content
        self._held = ""
        self._out: list[str | ToolCallDelta] = []
        self._calls = 0
        self._content_last = True
        self._cut_off = False
        self._name = ""
        self._keys: set[str] = set()
        self._value: _Value | None = None

    def push(self, text: str) -> list[str | ToolCallDelta]:
        """Content (str) and call deltas that are certain now that `text` has arrived."""
        self._held += text
        return self._run(final=False)

    def finish(self, cut_off: bool = False) -> list[str | ToolCallDelta]:
        """The rest, at the end of the output.

        A call that is not closed is completed, but for an output that was `cut_off` at its limit: then its arguments
        end where they were cut, in JSON that is still open, since what is missing might change what the call does.
        """
        self._cut_off = cut_off
        return self._run(final=True)

    def _run(self, final: bool) -> list[str | ToolCallDelta]:
        while self._read(final):
            pass
        out, self._out = self._out, []
        return out

    # Each reader takes what it can off the held text; False: more text is needed.

    def _content(self, final: bool) -> bool:
        if call := self._tags.find_call(self._held, final):
            self._emit_content(self._held[: call.start])
            self._held = self._held[call.end :]
            self._open_call(call.name)
            return True
        certain = self._certain_at_the_end() if final else length_before_call(self._held)
        self._emit_content(self._held[:certain], final)
        self._held = self._held[certain:]
        return False

    def _certain_at_the_end(self) -> int:
        begun = begun_call(self._held) if self._cut_off else len(self._held)
        return before_space(self._held, begun) if self._held.startswith(CUT_HEAD, begun) else len(self._held)

    def _step(self, final: bool) -> bool:
        """Between parameters."""
        if step := STEP.match(self._held):
            self._held = self._held[step.end() :]
            if step["key"] is not None:
                self._open_value(step["key"].strip())
            else:
                self._close_call(self._content if step[0].endswith("</tool_call>") else self._block_end)
            return True
        if self._tags.new_call.match(self._held):
            self._close_call(self._content)
            return True
        return self._junk(final)

    def _junk(self, final: bool) -> bool:
        """Text where a tag should stand: as much as a typing error is left out, more ends the call."""
        junk = self._tags.junk.match(self._held)
        if junk and junk["tag"] is not None:
            self._held = self._held[junk.start("tag") :]
            return True
        if junk is None and len(self._held) <= MOST_JUNK and not final:
            return False
        spare = SPARE_CLOSINGS.match(self._held)
        self._held = self._held[spare.end() if spare else 0 :]
        if final and junk is None:
            if self._cut_off or TAG_BEGUN.match(self._held) or CLOSING_BEGUN.match(self._held):
                self._held = ""
            if self._cut_off:
                return False
        self._close_call(self._content)
        return True

    def _value_start(self, final: bool) -> bool:
        assert self._value is not None
        if self._held in ("", "\r") and not final:
            return False
        self._value.reader.crlf = self._held.startswith("\r\n")
        self._held = self._held.removeprefix("\r\n" if self._value.reader.crlf else "\n")
        self._read = self._value_text
        return True

    def _value_text(self, final: bool) -> bool:
        assert self._value is not None
        end, then = self._value.find(self._held, final)
        self._add_arguments(self._value.add(self._held[:end]))
        self._held = self._held[end if then is None else then :]
        if then is None and (not final or self._cut_off):
            return False
        self._add_arguments(self._value.end())
        self._read = self._step
        return True

    def _block_end(self, final: bool) -> bool:
        """After </function>: its </tool_call>, which may be missing, or another function of the same block."""
        if end := BLOCK_END.match(self._held):
            self._held = self._held[end.end() :]
        elif function := self._tags.next_function.match(self._held):
            self._held = self._held[function.end() :]
            self._open_call(function["name"])
            return True
        elif BLOCK_END_BEGUN.match(self._held):
            if not final:
                return False
            self._held = ""
        self._read = self._content
        return True

    def _emit_content(self, text: str, final: bool = False) -> None:
        if final and not self._content_last and not text.strip(SPACES):
            return
        if text:
            self._content_last = True
            self._out.append(text)

    def _open_call(self, name: str) -> None:
        self._name, self._keys, self._content_last = name, set(), False
        self._out += [ToolCallDelta(self._calls, self._new_id(), name), ToolCallDelta(self._calls, arguments="{")]
        self._read = self._step

    def _open_value(self, key: str) -> None:
        # JSON has one value a name: the first one is on its way already when it comes again.
        wanted = key not in self._keys
        if wanted:
            self._add_arguments((", " if self._keys else "") + dump(key) + ": ")
            self._keys.add(key)
        types = self._types.get(self._name, {})
        self._value = _Value(types.get(key, frozenset()), wanted, self._tags, types.keys() - self._keys - {key})
        self._add_arguments(self._value.begin())
        self._read = self._value_start

    def _close_call(self, then: Callable[[bool], bool]) -> None:
        self._add_arguments("}")
        self._calls += 1
        self._read = then

    def _add_arguments(self, text: str) -> None:
        if text:
            self._out.append(ToolCallDelta(self._calls, arguments=text))


class _Value:
    """JSON text of one value: a string's as it comes, any other's at its end."""

    def __init__(self, types: frozenset[str], wanted: bool, tags: CallTags, others: Set[str]) -> None:
        """`wanted`: it is not given already; `others`: parameters that are not."""
        self._types, self._wanted = types, wanted
        self._streams = types == {"string"}
        self._parts: list[str] = []
        self._begun = False
        self._typed = bool(types) and "string" not in types
        self.reader = ValueReader(tags, others, partial(reads_as, types=types) if self._typed else None)

    def find(self, held: str, final: bool) -> tuple[int, int | None]:
        """`ValueReader.find` in the text that follows."""
        before = "".join(self._parts) if self._typed and "<" in held else ""
        return self.reader.find(before, held, not self._begun, final)

    def begin(self) -> str:
        return '"' if self._wanted and self._streams else ""

    def add(self, text: str) -> str:
        self._begun = self._begun or bool(text)
        if not self._wanted:
            return ""
        if self._streams:
            return dump(text)[1:-1]
        self._parts.append(text)
        return ""

    def end(self) -> str:
        if not self._wanted:
            return ""
        return '"' if self._streams else json_value("".join(self._parts), self._types)
