"""Output parsing: whatever the cuts, the deltas make the same message, and the message is what the text says."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nano3.data.chat.encoder import ChatTemplate
from nano3.data.chat.parsing.output_parser import Delta, OutputParser, ParsedOutput, ToolCallDelta, parse_output

SCHEMA = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "ratio": {"type": "number"},
        "flag": {"type": "boolean"},
        "nothing": {"type": "null"},
        "many": {"type": "array"},
        "record": {"type": "object"},
    },
}
TEMPLATE = ChatTemplate.default()
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]

FRAGMENTS = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<function=f>",
    "<function=",
    "</function>",
    "<parameter=text>",
    "<parameter=count>",
    "<parameter=other>",
    "<parameter=",
    "</parameter>",
    "\n",
    "\n\n",
    " ",
    "\n" * 200,
    "<",
    ">",
    "é😀",
    '"\\',
    "12",
    '{"k": [1, "</parameter>"]}',
    "None",
    "word",
    "\u2028\x00",
    "<tool_call>\n<function=f>\n<parameter=text>\nx\n</parameter>\n</function>\n</tool_call>",
]
soup = st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join)
cuts = st.lists(st.integers(0, 400), max_size=12)
modes = st.fixed_dictionaries(
    {"thinking_open": st.booleans(), "parse_tools": st.booleans(), "parse_thinking": st.booleans()}
)


def split(text: str, at: Iterable[int]) -> list[str]:
    """The text cut at these places (those inside it)."""
    places = sorted({0, len(text), *(place for place in at if place < len(text))})
    return [text[start:end] for start, end in itertools.pairwise(places)]


def stream(pieces: Iterable[str], tools: Any = TOOLS, **options: Any) -> list[Delta]:
    """All deltas of an output that arrives like this; calls are numbered."""
    numbers = itertools.count()
    parser = OutputParser(tools, new_id=lambda: f"call_{next(numbers)}", **options)
    deltas = [delta for piece in pieces for delta in parser.push(piece)]
    return deltas + parser.finish()


def joined(deltas: Iterable[Delta]) -> ParsedOutput:
    output = ParsedOutput()
    for delta in deltas:
        output.add(delta)
    return output


def parse(text: str, **options: Any) -> tuple[str, str, list[tuple[str, Any]]]:
    """Reasoning, content, and calls with their arguments read as JSON."""
    output = parse_output(text, options.pop("tools", TOOLS), **{"thinking_open": False, **options})
    return output.reasoning, output.content, [(call.name, json.loads(call.arguments)) for call in output.tool_calls]


def written(name: str, arguments: dict[str, str]) -> str:
    """A call as a model writes it."""
    parameters = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items())
    return f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>"


def argument(value: str, key: str = "text", tools: Sequence[Any] = TOOLS) -> Any:
    """What one written value is read as."""
    (call,) = parse(written("f", {key: value}), tools=tools)[2]
    return call[1][key]


@given(text=soup, at=cuts, options=modes)
def test_any_cuts_give_the_same_message(text: str, at: list[int], options: dict[str, bool]) -> None:
    whole = joined(stream([text], **options))
    assert joined(stream(split(text, at), **options)) == whole
    assert joined(stream(text, **options)) == whole
    for call in whole.tool_calls:
        assert isinstance(json.loads(call.arguments), dict)


@given(text=soup, at=cuts, options=modes)
def test_deltas_have_one_part_each_and_calls_begin_with_id_and_name(
    text: str, at: list[int], options: dict[str, bool]
) -> None:
    begun = 0
    for delta in stream(split(text, at), **options):
        assert sum(map(bool, (delta.content, delta.reasoning, delta.tool_call))) == 1
        if delta.tool_call and delta.tool_call.id is not None:
            assert delta.tool_call.index == begun
            assert delta.tool_call.name
            begun += 1
        elif delta.tool_call:
            assert delta.tool_call.index == begun - 1
            assert delta.tool_call.arguments


@given(text=soup, opened=st.booleans())
def test_no_character_is_lost_or_invented_outside_calls(text: str, opened: bool) -> None:
    output = parse_output(text, TOOLS, thinking_open=opened)
    if not output.tool_calls:
        kept = output.reasoning + output.content
        # Only a tag that opens or closes thinking goes, with the line breaks at its sides.
        dropped = r"[ \t\r\n]*</?think>\n?"
        assert re.sub(dropped, "", kept) == re.sub(dropped, "", text)
        assert text.count("<") - kept.count("<") <= 1 + text.count("</think>")


@given(text=soup)
def test_with_nothing_to_parse_the_text_is_the_content(text: str) -> None:
    assert parse(text, thinking_open=True, parse_tools=False, parse_thinking=False) == ("", text, [])


def oracle(text: str, opened: bool) -> tuple[str, str, list[tuple[str, dict[str, str]]]]:
    """What a well-formed output says, read at one go by regular expressions."""
    reasoning = ""
    if text.startswith("<think>\n"):
        text, opened = text.removeprefix("<think>\n"), True
    if opened:
        found = re.match(r"(.*?)(?:\n?</think>\n?|\s*(?=<tool_call>)|\Z)(.*)", text, re.DOTALL)
        assert found is not None
        reasoning, text = found.groups()
    calls = [
        (name, dict(re.findall(r"<parameter=(\w+)>\n(.*?)\n</parameter>", body, re.DOTALL)))
        for name, body in re.findall(r"<tool_call>\n<function=(\w+)>(.*?)</function>\n</tool_call>", text, re.DOTALL)
    ]
    return reasoning, re.sub(r"\s*<tool_call>.*</tool_call>\s*", "", text, flags=re.DOTALL), calls


plain = st.text(st.sampled_from("ab \né<>/😀"), max_size=12).filter(lambda text: not text.startswith("\n"))
plain_calls = st.lists(
    st.tuples(st.sampled_from(["f", "g"]), st.dictionaries(st.sampled_from(["text", "note"]), plain)), max_size=3
)


@given(
    reasoning=plain,
    content=plain,
    calls=plain_calls,
    opening=st.sampled_from(["", "<think>\n"]),
    closing=st.sampled_from(["\n</think>\n", "</think>", "\n"]),
    at=cuts,
)
def test_well_formed_output_reads_as_a_simple_reader_reads_it(
    reasoning: str, content: str, calls: list[Any], opening: str, closing: str, at: list[int]
) -> None:
    text = opening + reasoning + closing + content + "\n".join(written(*call) for call in calls)
    strings = {"type": "object", "properties": {"text": {"type": "string"}, "note": {"type": "string"}}}
    tools = [{"name": name, "parameters": strings} for name in ("f", "g")]
    output = joined(stream(split(text, at), tools, thinking_open=True))
    read = [(call.name, json.loads(call.arguments)) for call in output.tool_calls]
    assert (output.reasoning, output.content, read) == oracle(text, opened=True)


next_call = re.compile(r"</function>\s*</tool_call>\s*<tool_call>\s*<function=f")
ends = re.compile(r"</parameter>\s*(<parameter=[^<>\s][^<>\n]*>|</function>|</tool_call>)")
values = st.one_of(st.text(max_size=30), soup)


@given(value=values, at=cuts)
@example(value="\n", at=[])
@example(value="", at=[])
@example(value="</parameter>\nand <parameter=> more", at=[30])
@example(value="</function>\n</tool_call>\n<tool_call>", at=[])
@example(value='{"nested": {"deep": ["\\u00e9", null]}}', at=[40])
def test_a_string_comes_through_exactly(value: str, at: list[int]) -> None:
    text = written("f", {"text": value, "count": "3"})
    if len(ends.findall(text)) > 2 or next_call.search(value):
        return  # the value itself holds what ends a value
    output = joined(stream(split(text, at), thinking_open=False))
    assert [json.loads(call.arguments) for call in output.tool_calls] == [{"text": value, "count": 3}]
    assert output.content == ""


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
typed_arguments = st.fixed_dictionaries(
    {},
    optional={
        "text": st.text(max_size=20),
        "count": st.integers(),
        "ratio": st.floats(allow_nan=False, allow_infinity=False) | st.integers(),
        "flag": st.booleans(),
        "nothing": st.none(),
        "many": st.lists(json_values, max_size=3),
        "record": st.dictionaries(st.text(max_size=4), json_values, max_size=3),
    },
)


@given(
    arguments=st.lists(typed_arguments, min_size=1, max_size=3),
    reasoning=st.sampled_from(["", "why", "why\n\nso", " é "]),
    content=st.sampled_from(["", "I look.", "two\n\nlines"]),
    at=cuts,
)
def test_a_rendered_turn_reads_as_what_was_rendered(
    arguments: list[dict[str, Any]], reasoning: str, content: str, at: list[int]
) -> None:
    messages = [{"role": "user", "content": "q"}]
    prompt = TEMPLATE.render(messages, TOOLS, enable_thinking=bool(reasoning))
    calls = [{"function": {"name": "f", "arguments": json.dumps(values)}} for values in arguments]
    answer = {"role": "assistant", "content": content, "reasoning": reasoning, "tool_calls": calls}
    rendered = TEMPLATE.render([*messages, answer], TOOLS, add_generation_prompt=False)
    assert rendered.startswith(prompt)
    text = rendered.removeprefix(prompt).removesuffix("<|im_end|>\n")
    output = joined(stream(split(text, at), thinking_open=bool(reasoning)))
    assert (output.reasoning, output.content) == (reasoning, content)
    assert [json.loads(call.arguments) for call in output.tool_calls] == arguments


@pytest.mark.parametrize(
    ("text", "opened", "reasoning", "content"),
    [
        ("a\n</think>\nb", True, "a", "b"),
        ("a\n\n</think>\n\nb", True, "a\n", "\nb"),
        ("a</think>b", True, "a", "b"),
        ("never closed\n", True, "never closed\n", ""),
        ("cut off </thi", True, "cut off </thi", ""),
        ("all content", False, "", "all content"),
        ("\nall </think> content", False, "", "\nall </think> content"),
        ("<think>\na\n</think>\nb", False, "a", "b"),
        ("\n<think>a</think>b", False, "a", "b"),
        ("<think>\na", True, "a", ""),
        ("<think>\n</think>\nb", True, "", "b"),
        ("</think>b", True, "", "b"),
        ("b <think>", False, "", "b <think>"),
        ("the <tool_call> tag\n</think>\nb", True, "the <tool_call> tag", "b"),
    ],
)
def test_reasoning_and_content(text: str, opened: bool, reasoning: str, content: str) -> None:
    assert parse(text, thinking_open=opened) == (reasoning, content, [])


def test_a_call_ends_reasoning() -> None:
    text = "need it\n\n" + written("f", {"count": "1"})
    assert parse(text, thinking_open=True) == ("need it", "", [("f", {"count": 1})])
    assert parse(text, thinking_open=True, parse_tools=False) == (text, "", [])
    assert parse(text + "</think>", thinking_open=True) == ("need it", "", [("f", {"count": 1})])
    assert parse("need it <tool_call>\n<function=f>\n", thinking_open=True) == ("need it", "", [("f", {})])


def test_content_around_calls() -> None:
    one, two = written("f", {}), written("unknown", {"a": "b"})
    calls = [("f", {}), ("unknown", {"a": "b"})]
    assert parse(f"Look: \n{one}\n\n{two}\n") == ("", "Look:", calls)
    assert parse(f"{one} {two}\nDone. ") == ("", "\nDone. ", calls)


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>\nf(1)\n</tool_call>",
        '\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n',
        "<tool_call>\n<function=f>\njust text\n</function>\n</tool_call>",
        "<tool_call>\n<function=>\n</function>\n</tool_call>",
        "<tool_call>\n<function=f",
        "see <tool_c",
        "<tool_call>",
        "ends in space \n",
    ],
)
def test_what_is_no_call_stays_content(text: str) -> None:
    assert parse(text) == ("", text, [])


def test_a_call_after_a_broken_one_is_read() -> None:
    assert parse("<tool_call>oops" + written("f", {})) == ("", "<tool_call>oops", [("f", {})])


WHOLE = written("f", {"text": "ab", "count": "7"})


@pytest.mark.parametrize(
    ("end", "arguments"),
    [
        ("</function>", {"text": "ab", "count": 7}),
        ("</parameter>\n</function>\n</tool_c", {"text": "ab", "count": 7}),
        ("7\n</parameter>\n", {"text": "ab", "count": 7}),
        ("7\n</para", {"text": "ab", "count": 7}),
        ("7", {"text": "ab", "count": 7}),
        ("<parameter=count>\n", {"text": "ab", "count": ""}),
        ("ab\n</parameter>\n<parameter=cou", {"text": "ab"}),
        ("ab\n</parameter>", {"text": "ab"}),
        ("<parameter=text>\na", {"text": "a"}),
        ("<parameter=te", {}),
        ("<function=f>", {}),
    ],
)
def test_a_cut_off_call_is_completed(end: str, arguments: dict[str, Any]) -> None:
    text = WHOLE[: WHOLE.rindex(end) + len(end)]
    assert parse(text) == ("", "", [("f", arguments)])
    assert joined(stream(text, thinking_open=False)) == joined(stream([text], thinking_open=False))


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call><function=f><parameter=text>ab</parameter><parameter=count>7</parameter></function></tool_call>",
        "<tool_call>\n<function=f>\n<parameter=text>\nab\n</parameter>\n<parameter=count>\n7\n</parameter>\n</tool_call>",
        "<tool_call>\n<function=f>\n<parameter=text>\nab\n</parameter>\n<parameter=count>\n7\n</function>\n</tool_call>\n",
        "<tool_call>\n<function=f>\n<parameter=text>\nab\n</parameter>\n<parameter=count>\n7\n</tool_call>",
        WHOLE.replace("</parameter>\n</function>", "</parameter>\n<parameter=text>\nagain\n</parameter>\n</function>"),
    ],
)
def test_sloppy_calls_are_read(text: str) -> None:
    assert parse(text) == ("", "", [("f", {"text": "ab", "count": 7})])


def test_names_lose_spaces_at_their_end_and_may_hold_quotes() -> None:
    text = '<tool_call>\n<function=f >\n<parameter=count >\n7\n</parameter>\n<parameter=a"b>\nx\n</parameter>'
    assert parse(text) == ("", "", [("f", {"count": 7, 'a"b': "x"})])


def test_a_string_streams_letter_by_letter() -> None:
    head = "<tool_call>\n<function=f>\n<parameter=text>\n"
    parser = OutputParser(TOOLS, thinking_open=False)
    assert [delta.tool_call.name for delta in parser.push(head) if delta.tool_call and delta.tool_call.name] == ["f"]
    assert [parser.push(letter) for letter in "a\n<"] == [arguments_delta("a"), [], []]
    assert parser.push('b>é"') == arguments_delta('\\n<b>é\\"')
    assert parser.push("\n</parameter>\n</func") == []
    assert parser.push("tion>") == arguments_delta('"}')


def arguments_delta(text: str) -> list[Delta]:
    return [Delta(tool_call=ToolCallDelta(0, arguments=text))]


def test_partial_tags_are_never_shown() -> None:
    text = "why\n</think>\nLook.\n" + WHOLE
    for size in range(1, len(text)):
        parser = OutputParser(TOOLS, thinking_open=True)
        shown = joined(parser.push(text[:size]))
        assert "<" not in shown.content + shown.reasoning


def test_call_ids_are_fresh() -> None:
    ids = [call.id for call in parse_output(WHOLE * 3, TOOLS, thinking_open=False).tool_calls]
    assert len(set(ids)) == 3
    assert all(re.fullmatch(r"call_[0-9a-f]{24}", call_id) for call_id in ids)


def test_a_long_output_is_read_in_good_time() -> None:
    text = "x \n" * 20_000 + " " * 60_000 + "y" + "\n" * 60_000 + "<tool_call>" * 2000 + WHOLE
    output = parse_output(text, TOOLS, thinking_open=False)
    assert len(output.content) > 120_000
    assert len(output.tool_calls) == 1


@pytest.mark.parametrize("text", ["<think>", "", f"</think>a{written('f', {})}", "x"])
@pytest.mark.parametrize("opened", [False, True])
def test_a_model_stuck_in_white_space_holds_little_back(text: str, opened: bool) -> None:
    parser = OutputParser(TOOLS, thinking_open=opened)
    shown = [parser.push(letter) for letter in text + "\n" * 2000][len(text) :]
    assert sum(len(delta.content + delta.reasoning) for deltas in shown for delta in deltas) > 1700
    assert all(len(delta.content + delta.reasoning) < 300 for deltas in shown for delta in deltas)


@pytest.mark.parametrize("space", [256, 257, 1000])
def test_much_white_space_before_a_call_is_content(space: int) -> None:
    deltas = stream(" " * space + written("f", {}), thinking_open=False)
    assert joined(deltas).content == " " * (space - 256)
    assert len(joined(deltas).tool_calls) == 1


def test_a_message_of_very_many_deltas() -> None:
    output = ParsedOutput()
    output.add(Delta(tool_call=ToolCallDelta(0, "id", "f")))
    for _ in range(100_000):
        output.add(Delta(content="ab", reasoning="c", tool_call=ToolCallDelta(0, arguments="d")))
    assert (output.content, output.reasoning) == ("ab" * 100_000, "c" * 100_000)
    assert output.tool_calls[0].arguments == "d" * 100_000
    assert output != ParsedOutput()


@pytest.mark.parametrize("between", ["", " \n", "\n\n"])
def test_a_call_in_an_open_thinking_part_that_is_not_spaced_as_the_template_does_can_be_left_to_it(
    between: str,
) -> None:
    text = f"so\n<tool_call>{between}<function=f>\n</function>\n</tool_call>"
    assert len(parse_output(text, thinking_open=True).tool_calls) == 1
    kept = parse_output(text, thinking_open=True, loose_calls_in_thinking=False)
    assert (kept.reasoning, kept.tool_calls) == (text, [])


def test_a_name_ends_with_spaces_and_tabs_alone_for_only_those_are_left_out():
    for space, name in ((" \t", "add"), ("\u00a0", "add\u00a0")):
        (call,) = parse_output(
            f"<tool_call>\n<function=add{space}>\n</function>\n</tool_call>", thinking_open=False
        ).tool_calls
        assert call.name == name


def test_a_bare_call_in_an_open_thinking_part_can_be_left_to_it():
    bare = "so\n<function=f>\n<parameter=a>\nx\n</parameter>\n</function>\n</tool_call>"
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    read = parse_output(bare, tools, thinking_open=True)
    assert (read.reasoning, len(read.tool_calls)) == ("so", 1)
    kept = parse_output(bare, tools, thinking_open=True, loose_calls_in_thinking=False)
    assert (kept.reasoning, kept.tool_calls) == (bare, [])
    whole = parse_output(f"<tool_call>\n{bare[3:]}", tools, thinking_open=True, loose_calls_in_thinking=False)
    assert len(whole.tool_calls) == 1
    after = parse_output(f"so</think>{bare}", tools, thinking_open=True, loose_calls_in_thinking=False)
    assert len(after.tool_calls) == 1


def test_a_call_that_the_limit_cut_off_stays_open():
    whole = parse_output(WHOLE, TOOLS, thinking_open=False, cut_off=True).tool_calls
    assert all(json.loads(call.arguments) for call in whole)
    [call] = parse_output(WHOLE[: WHOLE.index("</parameter>")], TOOLS, thinking_open=False, cut_off=True).tool_calls
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        json.loads(call.arguments)
