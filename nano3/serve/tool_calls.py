"""Read XML tool calls while the text arrives.

    <tool_call>
    <function=name>
    <parameter=key>
    value
    </parameter>
    </function>
    </tool_call>

A value ends only at a </parameter> that another parameter, </function>, </tool_call> or the end of the output follows,
so it may hold tags of its own.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from nano3.serve.partial import GAP, LONGEST_GAP, NAME, SPACES, begun, begun_name
from nano3.serve.typed_values import dump, json_value, parameter_types

_NEXT = rf"{GAP}(?:<parameter={NAME}>|</function>|</tool_call>)"
_NEXT_BEGUN = rf"{GAP}(?:{begun('<parameter=', begun_name(begun('>')))}|{begun('</function>')}|{begun('</tool_call>')})"
_HEAD = rf"<tool_call>{GAP}<function=({NAME})>"
_HEAD_BEGUN = begun("<tool_call>", GAP + begun("<function=", begun_name(begun(">", _NEXT_BEGUN))))

CALL = re.compile(rf"{_HEAD}(?={_NEXT})")
"""A call as far as its name; from here on it will be a call whatever follows."""
CALL_BEGUN = re.compile(_HEAD_BEGUN)
CALL_CUT_OFF = re.compile(rf"{_HEAD}(?={_NEXT_BEGUN}\Z)")
"""A call of which the output's end leaves the name and nothing more."""
STEP = re.compile(rf"{GAP}(?:<parameter=(?P<key>{NAME})>|</function>|</tool_call>)")
VALUE_END = re.compile(rf"\n?</parameter>(?={_NEXT})")
_BLOCK_END_BEGUN = begun("</tool_call>", rf"{GAP}\Z")
VALUE_END_BEGUN = re.compile(
    rf"\n?(?:{begun('</parameter>', _NEXT_BEGUN)}|{begun('</function>', GAP + _BLOCK_END_BEGUN)}|{_BLOCK_END_BEGUN})"
)
"""What may close a value, and what is taken to close it at the end of the output, cut off or with tags missing."""
BLOCK_END = re.compile(rf"{GAP}</tool_call>")
BLOCK_END_BEGUN = re.compile(GAP + begun("</tool_call>"))


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


class CallHead(NamedTuple):
    """Where a call begins, the white space before it included, and where its name has ended."""

    start: int
    end: int
    name: str


def find_call(text: str, final: bool) -> CallHead | None:
    """The first call in a text; with `final`, one that the end of the output cut off after its name as well."""
    call = CALL.search(text) or (CALL_CUT_OFF.search(text) if final else None)
    return CallHead(_before_space(text, call.start()), call.end(), call[1].strip()) if call else None


def length_before_call(text: str) -> int:
    """Length of the part of a text that still arrives which can be no part of a call to come."""
    tag = text.find("<")
    begun = CALL_BEGUN.search(text, tag) if tag >= 0 else None
    return _before_space(text, begun.start() if begun else len(text))


def _before_space(text: str, end: int) -> int:
    """Where the white space that ends at `end` begins; not more than `LONGEST_GAP` of it, for it is held back."""
    start = max(0, end - LONGEST_GAP)
    return start + len(text[start:end].rstrip(SPACES))


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
        if call := find_call(self._held, final):
            self._emit_content(self._held[: call.start])
            self._held = self._held[call.end :]
            self._open_call(call.name)
            return True
        certain = len(self._held) if final else length_before_call(self._held)
        self._emit_content(self._held[:certain], final)
        self._held = self._held[certain:]
        return False

    def _step(self, final: bool) -> bool:
        """Between parameters: the pattern that ended the last one has made sure that a tag follows."""
        step = STEP.match(self._held)
        if step is None:
            if final:
                self._held = ""
                if not self._cut_off:
                    self._close_call(self._content)
            return False
        self._held = self._held[step.end() :]
        if step["key"] is not None:
            self._open_value(step["key"].strip())
        else:
            self._close_call(self._content if step[0].endswith("</tool_call>") else self._block_end)
        return True

    def _value_start(self, final: bool) -> bool:
        if not self._held and not final:
            return False
        self._held = self._held.removeprefix("\n")
        self._read = self._value_text
        return True

    def _value_text(self, final: bool) -> bool:
        assert self._value is not None
        end = VALUE_END.search(self._held)
        if end is None:
            begun = VALUE_END_BEGUN.search(self._held)
            certain = begun.start() if begun else len(self._held)
            self._add_arguments(self._value.add(self._held[:certain]))
            self._held = self._held[certain:]
            if not final or self._cut_off:
                return False
        else:
            self._add_arguments(self._value.add(self._held[: end.start()]))
            self._held = self._held[end.end() :]
        self._add_arguments(self._value.end())
        self._read = self._step
        return True

    def _block_end(self, final: bool) -> bool:
        """After </function>: its </tool_call>, which may be missing."""
        if end := BLOCK_END.match(self._held):
            self._held = self._held[end.end() :]
        elif final and BLOCK_END_BEGUN.fullmatch(self._held):
            self._held = ""
        elif not final and BLOCK_END_BEGUN.fullmatch(self._held):
            return False
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
        self._value = _Value(self._types.get(self._name, {}).get(key, frozenset()), wanted)
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

    def __init__(self, types: frozenset[str], wanted: bool) -> None:
        self._types, self._wanted = types, wanted
        self._streams = types == {"string"}
        self._parts: list[str] = []

    def begin(self) -> str:
        return '"' if self._wanted and self._streams else ""

    def add(self, text: str) -> str:
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
