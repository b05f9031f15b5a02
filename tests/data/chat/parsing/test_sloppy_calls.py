"""Tool calls as models write them: tags left out, doubled or out of place, and thinking tags where none belong."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nano3.data.chat.parsing.output_parser import OutputParser, ParsedOutput

TYPES = {"a": "string", "n": "integer", "x": "number", "b": "boolean", "l": "array", "o": "object"}
TOOLS = [
    {"name": "f", "parameters": {"properties": {key: {"type": kind} for key, kind in TYPES.items()} | {"u": {}}}},
    {"name": "g", "parameters": {"properties": {"q": {"type": "string"}}}},
    {"name": "now", "parameters": {"type": "object"}},
]


def read(pieces: Iterable[str], cut_off: bool = False, **options: Any) -> ParsedOutput:
    """An output that arrives like this; calls are numbered."""
    numbers = itertools.count()
    parser, output = OutputParser(TOOLS, new_id=lambda: f"{next(numbers)}", **options), ParsedOutput()
    for piece in pieces:
        for delta in parser.push(piece):
            output.add(delta)
    for delta in parser.finish(cut_off):
        output.add(delta)
    return output


def parse(text: str, **options: Any) -> tuple[str, str, list[tuple[str, Any]]]:
    """Reasoning, content and calls of an output, which must be the same in whole and letter by letter."""
    options = {"thinking_open": False} | options
    output = read([text], **options)
    assert read(text, **options) == output
    calls = [(call.name, json.loads(call.arguments)) for call in output.tool_calls]
    return output.reasoning, output.content, calls


def calls(text: str) -> list[tuple[str, Any]]:
    """The calls of an output that says nothing else."""
    reasoning, content, found = parse(text)
    assert (reasoning, content) == ("", "")
    return found


F, END = "<tool_call>\n<function=f>\n", "\n</function>\n</tool_call>"
G = "<tool_call>\n<function=g>\n<parameter=q>\nz\n</parameter>\n</function>\n</tool_call>"


def closed(key: str, value: str) -> str:
    return f"<parameter={key}>\n{value}\n</parameter>"


def opened(key: str, value: str) -> str:
    return f"<parameter={key}>\n{value}"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (F + opened("n", "3") + "\n" + closed("a", "x") + END, [("f", {"n": 3, "a": "x"})]),
        (F + opened("a", "x") + "\n" + closed("n", "3") + END, [("f", {"a": "x", "n": 3})]),
        (F + opened("a", "x\ny") + "\n" + opened("n", "3") + "\n" + closed("b", "true") + END,
         [("f", {"a": "x\ny", "n": 3, "b": True})]),
        (F + opened("o", '{"k": 1}') + "\n" + opened("l", "[1]") + END, [("f", {"o": {"k": 1}, "l": [1]})]),
        (F + opened("a", "") + closed("n", "3") + END, [("f", {"a": "", "n": 3})]),
        (F + opened("u", "some") + "\n" + closed("n", "3") + END, [("f", {"u": "some", "n": 3})]),
        (F + opened("n", "many") + "\n" + closed("a", "x") + END, [("f", {"n": "many", "a": "x"})]),
        (F + opened("a", "x") + "\n" + opened("n", "3") + END, [("f", {"a": "x", "n": 3})]),
        (F + opened("a", "x") + "\n" + closed("n", "3"), [("f", {"a": "x", "n": 3})]),
    ],
)  # fmt: skip
def test_a_parameter_that_is_not_closed_ends_at_the_next(text: str, wanted: Any) -> None:
    assert calls(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (F + opened("n", "3") + END + "\n" + G, [("f", {"n": 3}), ("g", {"q": "z"})]),
        (F + opened("a", "x") + END + "\n" + G, [("f", {"a": "x"}), ("g", {"q": "z"})]),
        (F + opened("u", "x") + END + G, [("f", {"u": "x"}), ("g", {"q": "z"})]),
        (F + closed("n", "3") + "\n" + G, [("f", {"n": 3}), ("g", {"q": "z"})]),
        (F + closed("a", "x") + "\n" + G, [("f", {"a": "x"}), ("g", {"q": "z"})]),
        (F + opened("n", "3") + "\n" + G, [("f", {"n": 3}), ("g", {"q": "z"})]),
        (F + G, [("f", {}), ("g", {"q": "z"})]),
        (F + closed("a", "x") + "\n</function>\n" + G.removeprefix("<tool_call>\n"),
         [("f", {"a": "x"}), ("g", {"q": "z"})]),
        (F + "</function>\n<function=now>\n</function>\n</tool_call>", [("f", {}), ("now", {})]),
        ("<tool_call>\n" + G, [("g", {"q": "z"})]),
    ],
)  # fmt: skip
def test_a_call_that_is_not_closed_ends_at_the_next(text: str, wanted: Any) -> None:
    assert calls(text) == wanted


@pytest.mark.parametrize(
    ("after", "content"),
    [("\n</parameter>", ""), (",", ""), (" ok", ""), ("\n</parameter>\n</parameter>", "")],
)
def test_what_stands_after_the_closing_tag_of_a_typed_value_is_left_out(after: str, content: str) -> None:
    text = F + closed("n", "3") + after + "\n" + closed("a", "x") + END
    assert parse(text) == ("", content, [("f", {"n": 3, "a": "x"})])


def test_words_after_a_typed_value_that_ends_the_output_are_the_answer() -> None:
    assert parse(F + closed("b", "true") + " ok") == ("", " ok", [("f", {"b": True})])
    long = " word" * 400
    assert parse(F + closed("b", "true") + long) == ("", long, [("f", {"b": True})])
    assert parse(F + opened("n", "3") + END + "\nDone.") == ("", "\nDone.", [("f", {"n": 3})])
    assert parse(F + closed("n", "3") + "\nNext.\n" + G) == ("", "\nNext.", [("f", {"n": 3}), ("g", {"q": "z"})])


@pytest.mark.parametrize(
    "value",
    [
        "doc:\n<parameter=n>\n3\n</parameter>\nand text",
        "doc:\n<parameter=n>\n3\n</parameter>",
        "doc: <parameter=n>\n3",
        "doc:\n<parameter=n> 3",
        "doc:\n<parameter=unknown>\n3",
        "doc:\n<parameter=a>\n3",
        "end\n</function>\n</tool_call>\nDone.",
        "end\n</function>\n</tool_call>\n<tool_call>\n<function=unknown>",
        "<function=g>\n<tool_call>",
    ],
)
def test_strings_may_hold_tags(value: str) -> None:
    assert calls(F + closed("a", value) + "\n" + closed("b", "true") + END) == [("f", {"a": value, "b": True})]


TAGS_IN_TEXT = [
    "</parameter></function></tool_call>",
    "</parameter>\n<parameter=n>\n3\n</parameter>",
    'a "quoted" </parameter>\n</function>',
    "a backslash at the end </parameter></tool_call>\\",
    "</function>\n</tool_call>\n" + G,
]


@pytest.mark.parametrize("text", TAGS_IN_TEXT)
def test_strings_in_json_may_hold_tags(text: str) -> None:
    for key, value in (("l", ["x", text]), ("o", {"k": {"l": text}, "m": 1}), ("o", {text: [text]})):
        call = F + closed(key, json.dumps(value)) + "\n" + closed("b", "true") + END
        assert calls(call) == [("f", {key: value, "b": True})]


@pytest.mark.parametrize("value", ['{"k": "x', '["a", "x', '["a", "x\ny", "z'])
def test_a_string_in_json_that_is_not_closed_ends_at_the_tags(value: str) -> None:
    assert calls(F + closed("l", value) + "\n" + closed("a", '"q"') + END + "\n" + G) == [
        ("f", {"l": value, "a": '"q"'}), ("g", {"q": "z"})
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [("n", "1,000", "1,000"), ("x", "1,5", "1,5"), ("b", "1", True), ("b", "FALSE", False), ("n", "007", 7),
     ("u", "2.50", "2.50"), ("o", '"{\\"a\\": 1}"', {"a": 1}), ("l", '["</tool_call>", 2]', ["</tool_call>", 2])],
)  # fmt: skip
def test_values_in_a_call(key: str, text: str, value: Any) -> None:
    assert calls(F + closed(key, text) + END) == [("f", {key: value})]


def test_carriage_returns_belong_to_the_tags_lines() -> None:
    text = (F + closed("a", "x\ny") + "\n" + closed("n", "3") + END + "\n" + G).replace("\n", "\r\n")
    assert calls(text) == [("f", {"a": "x\r\ny", "n": 3}), ("g", {"q": "z"})]
    assert calls(F + closed("a", "x\r") + END) == [("f", {"a": "x\r"})]


@pytest.mark.parametrize("before", ["", "Let me see.\n\n", "```\n"])
def test_a_call_may_lack_its_opening_tag(before: str) -> None:
    bare = G.removeprefix("<tool_call>\n")
    reasoning, content, found = parse(before + bare)
    assert (reasoning, content.strip(), found) == ("", before.strip(), [("g", {"q": "z"})])
    assert parse("hm\n" + bare, thinking_open=True) == ("hm", "", [("g", {"q": "z"})])


@pytest.mark.parametrize(
    "text",
    [
        "<function=unknown>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
        "Write <function=now></function> there.",
        "The <function=f> tag",
        "<function=f>\ntext\n</function>",
    ],
)
def test_other_functions_without_an_opening_tag_are_text(text: str) -> None:
    assert parse(text) == ("", text, [])


@pytest.mark.parametrize(
    ("text", "opened_", "reasoning", "content"),
    [
        ("</think>\n\nHi", False, "", "\nHi"),
        ("</think>\nHi", False, "", "Hi"),
        ("T\n</think>\n</think>\nHi", True, "T", "Hi"),
        ("T</think></think></think>Hi", True, "T", "Hi"),
        ("Hi </think> there", False, "", "Hi </think> there"),
        ("</think>", False, "", ""),
        ("\n </thin", False, "", "\n </thin"),
    ],
)
def test_a_closing_tag_that_closes_nothing_is_left_out(text: str, opened_: bool, reasoning: str, content: str) -> None:
    assert parse(text, thinking_open=opened_) == (reasoning, content, [])
    found = parse(text + "\n" + G + "\n</think>", thinking_open=opened_)
    assert found[2] == [("g", {"q": "z"})]


def test_thinking_that_is_closed_after_its_call() -> None:
    assert parse("why\n" + G + "\n</think>", thinking_open=True) == ("why", "", [("g", {"q": "z"})])
    assert parse("why\n" + G + "\n</think>\nDone", thinking_open=True) == ("why", "Done", [("g", {"q": "z"})])


@pytest.mark.parametrize(
    ("end", "content"),
    [
        ("\n<tool_call>\n<func", "OK."),
        ("\n<tool_ca", "OK."),
        (" a <", "OK. a <"),
        ("\n<tool_call> is", "OK.\n<tool_call> is"),
    ],
)
def test_a_head_that_the_limit_cut_off_is_not_shown(end: str, content: str) -> None:
    for pieces in (["OK." + end], "OK." + end):
        assert read(pieces, cut_off=True, thinking_open=False).content == content
    assert parse("OK." + end) == ("", "OK." + end, [])


FRAGMENTS = [
    "<think>", "</think>", "<tool_call>", "</tool_call>", "</tool_call>\n", "<function=f>", "<function=g>\n",
    "<function=no>", "</function>", "\n</function>\n</tool_call>", "<parameter=a>\n", "\n<parameter=n>\n",
    "\n<parameter=l>\n", "<parameter=b>", "<parameter=", "</parameter>", "\n</parameter>\n", "\n", "\r\n", "\r", " ",
    "\n" * 260, "<", "3", "true", "[1, 2", "]", '{"k": "', '["', '"', '"]', "\\", "x",
    "word " * 60, '"}', ",", F, G, F + "<parameter=a>\r\n",
    F + "<parameter=n>\n", F + "<parameter=u>\n", F + "<parameter=l>\n",
]  # fmt: skip
soup = st.lists(st.sampled_from(FRAGMENTS), max_size=16).map("".join)
cuts = st.lists(st.integers(0, 600), max_size=12)


def pieces_of(text: str, at: Iterable[int]) -> list[str]:
    places = sorted({0, len(text), *(place for place in at if place < len(text))})
    return [text[start:end] for start, end in itertools.pairwise(places)]


@given(text=soup, at=cuts, opened_=st.booleans(), cut_off=st.booleans())
def test_any_cuts_give_the_same_message(text: str, at: list[int], opened_: bool, cut_off: bool) -> None:
    whole = read([text], cut_off, thinking_open=opened_)
    assert read(pieces_of(text, at), cut_off, thinking_open=opened_) == whole
    assert read(text, cut_off, thinking_open=opened_) == whole
    for call in whole.tool_calls if cut_off else ():
        completed = json.loads(read([text], thinking_open=opened_).tool_calls[int(call.id)].arguments)
        assert isinstance(completed, dict)
    for call in whole.tool_calls[: -1 if cut_off else None]:
        assert isinstance(json.loads(call.arguments), dict)


def test_a_long_value_with_many_tags_is_read_in_good_time() -> None:
    for key in TYPES:
        text = F + opened(key, "\n<parameter=n>\n[</parameter>" * 1000) + "\n</parameter>" + END
        assert len(read(pieces_of(text, range(0, len(text), 7)), thinking_open=False).tool_calls) >= 1


def test_a_long_string_in_json_after_a_tag_is_read_in_good_time() -> None:
    value = ["x" * 20000 + "</parameter>" + "y" * 20000]
    text = F + closed("l", json.dumps(value)) + END
    (call,) = read(pieces_of(text, range(0, len(text), 5)), thinking_open=False).tool_calls
    assert json.loads(call.arguments) == {"l": value}
