"""Tags of XML tool calls in text that still arrives: where a call begins, where a value ends."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection
from typing import NamedTuple

from nano3.data.chat.parsing.partial import GAP, LONGEST_GAP, NAME, SPACES, begun, begun_name

_NAME_BEGUN = begun_name(begun(">"))
_HEAD_BEGUN = begun("<tool_call>", GAP + begun("<function=", _NAME_BEGUN))
_CLOSINGS = rf"<parameter={NAME}>|</function>|</tool_call>"
_NEXT_BEGUN = (
    rf"{GAP}(?:{begun('<parameter=', _NAME_BEGUN)}|{begun('</function>')}|{begun('</tool_call>')}|{_HEAD_BEGUN})"
)
_FUNCTION_BEGUN = begun("<function=", begun_name(begun(">", _NEXT_BEGUN)))
_TWICE_BEGUN = rf"(?:{_FUNCTION_BEGUN}|{begun('<tool_call>', GAP + _FUNCTION_BEGUN)})"
_CALL_BEGUN = re.compile(rf"(?:{begun('<tool_call>', GAP + _TWICE_BEGUN)}|{_FUNCTION_BEGUN})\Z")

STEP = re.compile(rf"{GAP}(?:<parameter=(?P<key>{NAME})>|</function>|</tool_call>)")
BLOCK_END = re.compile(rf"{GAP}</tool_call>")
BLOCK_END_BEGUN = re.compile(rf"{GAP}(?:{begun('</tool_call>')}|{_FUNCTION_BEGUN})\Z")
SPARE_CLOSINGS = re.compile(rf"(?:{GAP}</parameter>)*")
CLOSING_BEGUN = re.compile(rf"{GAP}{begun('</parameter>')}\Z")
MOST_JUNK = 1024
"""More text than may stand between a value and the next tag, that tag included."""

TAG_BEGUN = re.compile(rf"{_NEXT_BEGUN}\Z")
"""A tag that may follow a value, or its beginning, at the text's end."""
_CLOSED_BEGUN = re.compile(
    rf"(?:{begun('</function>', GAP + begun('</tool_call>', GAP + _HEAD_BEGUN))}|{begun('</tool_call>', GAP)})\Z"
)
_CLOSED = rf"</function>{GAP}</tool_call>{GAP}"
_CLOSED_AT_THE_END = re.compile(rf"\n{_CLOSED}\Z")
_TAGS_BEGUN = "|".join(
    (begun("</parameter>"), begun("<parameter=", _NAME_BEGUN), begun("</function>"), begun("</tool_call>"),
     begun("<tool_call>"))
)  # fmt: skip
_TAGS = rf"(?:</parameter>|{_CLOSINGS}|<tool_call>|(?:{_TAGS_BEGUN})\Z)"
_TAG = re.compile(rf"\n?{_TAGS}")
_TAG_CRLF = re.compile(rf"(?:\r\Z|(?:\r?\n)?{_TAGS})")
_HEAD_TO_THE_END = re.compile(rf"{_HEAD_BEGUN}\Z")
_TEXT, _IN_JSON = -1, -2
_LONGEST_READ = 1 << 15
"""Characters of a value that is read at each tag in it."""
_JSON_CHARACTERS = r'(?:[^"\\\x00-\x1f]|\\.)*+'
_JSON_STRING = re.compile(_JSON_CHARACTERS)
_JSON_IN_STRING = re.compile(rf'\s*[\[{{](?:[^"]|"{_JSON_CHARACTERS}")*+"{_JSON_CHARACTERS}')
_JSON_AFTER_STRING = re.compile(r'"\s*(?:[,:\]}]|(?P<more>\Z))')


class CallHead(NamedTuple):
    """Where a call begins, the white space before it included, and where its name has ended."""

    start: int
    end: int
    name: str


class ValueEnd(NamedTuple):
    """Where the certain part of a value ends, and where to read on if the value ends with it."""

    start: int
    then: int | None


class _Tag(NamedTuple):
    text: str
    """A whole tag, or the beginning of one at the text's end."""
    start: int
    """Where it begins, the line break before it included."""
    at: int
    after: int
    on_line: bool
    """It begins a line."""

    @property
    def whole(self) -> bool:
        return self.text.endswith(">")


class CallTags:
    """Patterns that depend on the names of the functions that are offered."""

    def __init__(self, names: Collection[str], by_template: bool = False) -> None:
        """`names`: only these are called without <tool_call>, and only their calls end a value that is open;
        `by_template`: nothing but the template's line break is between <tool_call> and <function=."""
        offered = "|".join(re.escape(name) for name in names) or "(?!)"
        head = rf"<tool_call>{GAP}<function=(?:{offered})[ \t]*>"
        following = rf"{GAP}(?:{_CLOSINGS}|{head})"
        between = r"\n" if by_template else GAP
        full = rf"(?:<tool_call>{GAP})?<tool_call>{between}<function=(?P<name>{NAME})>"
        bare = rf"<function=(?P<bare>{offered})[ \t]*>(?=\r?\n)"
        self.after_value = re.compile(following)
        self.call = re.compile(rf"(?:{full}|{bare})(?={following})")
        self.cut_off = re.compile(rf"{full}(?={_NEXT_BEGUN}\Z)")
        self.next_function = re.compile(rf"{GAP}<function=(?P<name>{offered})[ \t]*>(?={following})")
        self.junk = re.compile(rf"(?s:.{{0,{LONGEST_GAP}}}?)(?:(?={head})|(?P<tag>{_CLOSINGS}))")
        self.new_call = re.compile(rf"{GAP}(?={head})")
        self.closed = re.compile(_CLOSED + head)
        self.closed_line = re.compile(rf"\n{_CLOSED}{head}")

    def find_call(self, text: str, final: bool) -> CallHead | None:
        """The first call in a text; with `final`, one that the end of the output cut off after its name as well."""
        call = self.call.search(text) or (self.cut_off.search(text) if final else None)
        if call is None:
            return None
        found = call.groupdict()
        return CallHead(before_space(text, call.start()), call.end(), (found["name"] or found["bare"]).strip(" \t"))


BY_TEMPLATE = CallTags((), by_template=True)
"""Calls in the template's form, whatever their names."""


@functools.lru_cache(maxsize=64)
def call_tags(names: frozenset[str]) -> CallTags:
    """The patterns for these functions, made once."""
    return CallTags(sorted(names))


def begun_call(text: str) -> int:
    """Where a call to come may have begun in a text that still arrives; its length where none has."""
    tag = text.find("<")
    found = _CALL_BEGUN.search(text, tag) if tag >= 0 else None
    return found.start() if found else len(text)


def length_before_call(text: str) -> int:
    """Length of the part of a text that still arrives which can be no part of a call to come."""
    return before_space(text, begun_call(text))


def before_space(text: str, end: int) -> int:
    """Where the white space that ends at `end` begins; not more than `LONGEST_GAP` of it, for it is held back."""
    start = max(0, end - LONGEST_GAP)
    return start + len(text[start:end].rstrip(SPACES))


class ValueReader:
    """Finds the end of one value. Models leave closing tags out, and values may hold tags of their own:

    - A value that reads as one of its types, none of which is a string, ends at the first tag. Tags inside the strings
      of a JSON object or array are part of it.
    - Any value ends at a </parameter> that another tag of the call follows, or another call, or the end of the output.
    - Without it, it ends at a line that opens a parameter which the function has and which is not given yet, if that
      one is closed before another one or the call's end; and at a line with the call's end, before another call or the
      end of the output.
    """

    def __init__(self, tags: CallTags, others: Collection[str], reads: Callable[[str], bool] | None) -> None:
        """`others`: parameters that may follow; `reads`: whether a text is of the value's types, None for strings."""
        self._tags, self._others, self._reads = tags, others, reads
        self.crlf = False
        """Its opening tag's line ends in a carriage return too, and so does the value."""
        self._length = -1
        self._in_string = False
        """Whether a JSON string is open after `_length` characters of the value, the last that were read."""

    def find(self, before: str, held: str, at_start: bool, final: bool) -> ValueEnd:
        """The value's end in the held text, or how much of that is certain.

        Args:
            before: the value so far.
            held: the text after it.
            at_start: the held text begins the value, and with it a line.
            final: nothing follows; then where the certain part ends, the value does.
        """
        first = held.find("<")
        first = max(0, (len(held) if first < 0 else first) - 2)
        for found in (_TAG_CRLF if self.crlf else _TAG).finditer(held, first):
            text = found[0].lstrip("\r\n")
            on_line = len(text) < len(found[0]) or (at_start and found.start() == 0)
            tag = _Tag(text, found.start(), found.end() - len(text), found.end(), on_line)
            then = self._typed(before, held, tag, final)
            if then == _TEXT:
                then = self._rule(tag, final)(held, tag, final)
            if then not in (_TEXT, _IN_JSON):
                return ValueEnd(tag.start, then)
        return ValueEnd(len(held), None)

    # Each rule says where to read on if the value ends before the tag; None: not certain yet; _TEXT: it does not;
    # _IN_JSON: it does not, whatever the other rules say.

    def _rule(self, tag: _Tag, final: bool) -> Callable[[str, _Tag, bool], int | None]:
        if tag.text == "</parameter>":
            return self._closing
        if tag.text in ("</function>", "</tool_call>"):
            return self._call_end
        if tag.text.startswith("<parameter=") and tag.whole:
            return self._opening
        is_text = tag.text == "<tool_call>" or (final and tag.text.startswith(("<p", "<t")))
        return _is_text if is_text else _not_certain

    def _typed(self, before: str, held: str, tag: _Tag, final: bool) -> int | None:
        """A value that is no string needs no look ahead."""
        if self._reads is None or not tag.whole or len(before) + tag.start > _LONGEST_READ:
            return _TEXT
        if tag.text == "<tool_call>" and not self._tags.new_call.match(held, tag.at):
            return None if _HEAD_TO_THE_END.match(held, tag.at) and not final else _TEXT
        length = len(before) + tag.start
        if length != self._length:
            value = before + held[: tag.start]
            if self._reads(value):
                return tag.after if tag.text == "</parameter>" else tag.at
            self._length, self._in_string = length, _ends_in_string(value)
        goes_on = self._in_string and _string_goes_on(held, tag.start)
        return None if goes_on is None and not final else _IN_JSON if goes_on else _TEXT

    def _closing(self, held: str, tag: _Tag, final: bool) -> int | None:
        if self._tags.after_value.match(held, tag.after):
            return tag.after
        return None if TAG_BEGUN.match(held, tag.after) else _TEXT

    def _call_end(self, held: str, tag: _Tag, final: bool) -> int | None:
        if tag.on_line and self._tags.closed.match(held, tag.at):
            return tag.at
        return None if _CLOSED_BEGUN.match(held, tag.at) else _TEXT

    def _opening(self, held: str, tag: _Tag, final: bool) -> int | None:
        key = tag.text[len("<parameter=") : -1].strip()
        rest_of_line = held[tag.after : tag.after + 1]
        if not tag.on_line or key not in self._others or rest_of_line not in ("", "\n", "\r"):
            return _TEXT
        closing = held.find("</parameter>", tag.after)
        if self._tags.closed_line.search(held, tag.after, closing if closing >= 0 else len(held)):
            return tag.at
        if closing >= 0:
            return self._opened(held, tag.at, closing + len("</parameter>"), key, final)
        if final:
            return tag.at if _CLOSED_AT_THE_END.search(held, tag.after) else _TEXT
        return None

    def _opened(self, held: str, at: int, after: int, key: str, final: bool) -> int | None:
        """The parameter that is opened at `at` is closed before `after`: it is one if another tag of the call follows,
        but for its own opening tag, which makes it a part of the value."""
        if following := self._tags.after_value.match(held, after):
            return _TEXT if following[0].endswith(f"<parameter={key}>") else at
        if TAG_BEGUN.match(held, after):
            return at if final else None
        return _TEXT


def _is_text(held: str, tag: _Tag, final: bool) -> int | None:
    return _TEXT


def _not_certain(held: str, tag: _Tag, final: bool) -> int | None:
    return None


def _ends_in_string(value: str) -> bool:
    """Whether a string is open at the end of `value`, the beginning of a JSON object or array."""
    return _JSON_IN_STRING.fullmatch(value) is not None


def _string_goes_on(text: str, start: int) -> bool | None:
    """Whether a JSON string that is open at `start` is closed, and with it a value or key; None: not certain yet.

    One that the model forgot to close holds the line break before the closing tag, which JSON's strings cannot have.
    """
    rest = _JSON_STRING.match(text, start)
    assert rest is not None
    if rest.end() >= len(text) - text.endswith("\\"):
        return None
    after = _JSON_AFTER_STRING.match(text, rest.end())
    return None if after is not None and after["more"] is not None else after is not None
