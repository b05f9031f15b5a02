"""Grammars of tool calls accept what the parser reads, and nothing against the schema."""

import json

import llguidance
import pytest

from nano3.data.chat.parsing.output_parser import parse_output
from nano3.engine.request import Grammar
from nano3.serve.structured.tool_grammar import call_grammar, watched_grammar

SEARCH = {
    "type": "function",
    "function": {
        "name": "search",
        "parameters": {
            "type": "object",
            "properties": {
                "query": {"type": "string"},
                "limit": {"type": "integer", "minimum": 1, "maximum": 50},
                "sort": {"type": "string", "enum": ["new", 'by "name"']},
                "exact": {"type": "boolean"},
                "tags": {"type": "array", "items": {"$ref": "#/$defs/Tag"}},
                "kind": {"$ref": "#/$defs/Tag"},
                "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "anything": {},
            },
            "required": ["query"],
            "$defs": {"Tag": {"type": "string", "enum": ["red", "green"]}},
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "now"}}
TOKENIZER = llguidance.LLTokenizer("byte")


def accepts(grammar: Grammar, text: str) -> bool:
    matcher = llguidance.LLMatcher(TOKENIZER, llguidance.grammar_from("lark", grammar.value))
    assert not matcher.is_error(), matcher.get_error()
    tokens = list(text.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def call(name, **arguments):
    lines = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items())
    return f"<tool_call>\n<function={name}>\n{lines}</function>\n</tool_call>"


def grammar(*tools, several=True, **options):
    return call_grammar(tools or (SEARCH, CLOCK), several=several, after_thinking=False, **options)


@pytest.mark.parametrize(
    "arguments",
    [
        {"query": "x"},
        {"query": ""},
        {"query": "two\nlines </param </parameter> <b>&\"' é\n\n"},
        {"query": "x", "limit": 50, "sort": 'by "name"', "exact": "true"},
        {"query": "x", "exact": "True", "tags": '["red", "green"]', "kind": "red", "note": "None", "anything": "{"},
    ],
)
def test_calls_by_the_schema_are_accepted_and_read_back(arguments):
    text = call("search", **arguments)
    assert accepts(grammar(), text)
    assert accepts(grammar(), f"\n{text}\n{call('now')}\n{text}\n")
    (read,) = parse_output(text, [SEARCH, CLOCK], thinking_open=False).tool_calls
    found = json.loads(read.arguments)
    assert found.keys() == arguments.keys()
    assert found["query"] == arguments["query"]


@pytest.mark.parametrize(
    "text",
    [
        "Hello",
        call("search"),
        call("other", query="x"),
        call("search", limit=3),
        call("search", query="x", limit=51),
        call("search", query="x", limit="many"),
        call("search", query="x", sort="old"),
        call("search", query="x", exact="perhaps"),
        call("search", query="x", tags='["blue"]'),
        call("search", query="x", tags='["red",  "green"]'),
        call("search", query="x", kind="blue"),
        call("search", query="x", unknown="y"),
        call("now") + "suffix",
    ],
)
def test_anything_else_is_refused(text):
    assert not accepts(grammar(), text)


def test_only_one_call_where_only_one_is_wanted():
    assert accepts(grammar(several=False), call("now"))
    assert not accepts(grammar(several=False), call("now") + "\n" + call("now"))


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        (Grammar("json_object"), '{"a": 1}', "[1]"),
        (Grammar("json_object"), '{ "a" : 1 }', '{\n"a": 1}'),
        (Grammar("json_schema", '{"type": "array"}'), "[1]", '{"a": 1}'),
        (Grammar("choice", '["yes/no", "\\n"]'), "yes/no", "yes"),
        (Grammar("regex", "a/b+"), "a/bb", "a/"),
        (Grammar("regex", r"a\/b"), "a/b", r"a\/b"),
        (Grammar("regex", r"a\\/b"), r"a\/b", "a/b"),
        (Grammar("regex", "a\n[/]b"), "a\n/b", "a/b"),
    ],
)
def test_an_answer_of_another_form_may_stand_in_place_of_calls(answer, right, wrong):
    either = grammar(answer=answer)
    assert accepts(either, right)
    assert accepts(either, call("now"))
    assert not accepts(either, wrong)


def test_types_by_the_names_of_other_languages():
    properties = {"a": {"type": "str"}, "n": {"type": "int"}, "o": {"type": "dict"}, "x": {"type": "any"}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "dict", "properties": properties}}}
    assert accepts(grammar(tool), call("f", a="451", n="3", o='{"k": 1}', x="y"))
    assert not accepts(grammar(tool), call("f", n="many"))
    assert json.loads(parse_output(call("f", a="451"), [tool], thinking_open=False).tool_calls[0].arguments) == {
        "a": "451"
    }


CITY = {"type": "string", "pattern": "^[A-Z][a-z]+$", "maxLength": 6}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get/weather.now",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": CITY, "days": {"type": "integer", "maximum": 9}},
            "required": ["city"],
        },
    },
}
ROME = call("get/weather.now", city="Rome")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Hello <b>&\n\n",
        ROME,
        f"Let me look.\n\n{ROME}\n{call('get/weather.now', city='Bonn', days=3)}",
        f"{ROME}\nDone.",
        f"{call('search', query='x', limit='many', unknown='y')} {ROME}",
        f"I write <tool_call> and <function=other>, then {ROME}",
        ROME.removeprefix("<tool_call>\n"),
    ],
)
def test_a_strict_call_may_stand_anywhere_in_free_text(text):
    watched = watched_grammar([WEATHER, SEARCH], after_thinking=False)
    assert watched is not None
    assert accepts(watched, text)


@pytest.mark.parametrize(
    "wrong",
    [
        call("get/weather.now", city="rome"),
        call("get/weather.now", city="Kathmandu"),
        call("get/weather.now", days=3),
        call("get/weather.now", city="Rome", days=10),
        call("get/weather.now", city="Rome", unknown=1),
        call("get/weather.now", city="rome").removeprefix("<tool_call>\n"),
        "<tool_call><function=get/weather.now><parameter=city>rome</parameter></function></tool_call>",
        "<tool_call>\n<function=get/weather.now >\n</function>\n</tool_call>",
    ],
)
@pytest.mark.parametrize("before", ["", "Let me look.\n", f"{ROME}\n"])
def test_a_strict_call_against_its_schema_cannot_be_written(before, wrong):
    watched = watched_grammar([SEARCH, WEATHER], after_thinking=False)
    assert watched is not None
    assert not accepts(watched, before + wrong)


def test_without_a_strict_tool_nothing_is_watched():
    assert watched_grammar([SEARCH, CLOCK], after_thinking=False) is None
