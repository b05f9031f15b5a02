"""Grammars of tool calls accept what the parser reads, and nothing against the schema."""

import json

import llguidance
import pytest

from nano3.engine.request import Grammar
from nano3.serve.parsing.output_parser import parse_output
from nano3.serve.structured.tool_grammar import call_grammar

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
