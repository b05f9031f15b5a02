"""Strings of enforced tool calls keep the lengths, patterns and formats of the schema, or the request is refused."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import llguidance
import pytest

from nano3.config.errors import UserError
from nano3.data.chat.parsing.output_parser import parse_output
from nano3.engine.grammar.masks import GrammarCompiler
from nano3.serve.chat.prompt import plan_chat
from nano3.serve.schemas import ChatRequest
from nano3.serve.structured.tool_grammar import call_grammar

TOKENIZER = llguidance.LLTokenizer("byte")


def tool(schema: Any, strict: Any = True, **root: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"k": schema}, "required": ["k"], **root}
    return {"type": "function", "function": {"name": "f", "strict": strict, "parameters": parameters}}


def accepts(function: dict[str, Any], value: str) -> bool:
    grammar = call_grammar([function], several=False, after_thinking=False)
    matcher = llguidance.LLMatcher(TOKENIZER, llguidance.grammar_from("lark", grammar.value))
    assert not matcher.is_error(), matcher.get_error()
    text = f"<tool_call>\n<function=f>\n<parameter=k>\n{value}\n</parameter>\n</function>\n</tool_call>"
    tokens = list(text.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"maxLength": 5}, ["", "abcde", "é😀a\n/", "a\n"], ["abcdef", "<b></b"]),
        ({"minLength": 2}, ["ab", "x" * 300], ["", "a"]),
        ({"minLength": 1, "maxLength": 3.0}, ["a", "abc"], ["", "abcd"]),
        ({"pattern": "^[a-c]{3}$"}, ["abc"], ["abcd", "xabc", "ab"]),
        ({"pattern": "b+"}, ["abba", "b"], ["aa", ""]),
        ({"pattern": "^(?:yes|no)$"}, ["yes", "no"], ["yesno", "maybe"]),
        ({"pattern": "yes|no"}, ["yes", "so no"], ["maybe"]),
        ({"pattern": r"^a/b\$[$^|]$"}, ["a/b$^", "a/b$|"], ["a/b$x"]),
        ({"pattern": "^[ab]*$", "maxLength": 3}, ["aba", ""], ["abab", "abc"]),
        ({"format": "date"}, ["2026-11-29"], ["2026-13-01", "2026-11-31", "today"]),
        ({"format": "date-time"}, ["2026-11-29T10:00:00Z", "2026-11-29T10:00:00.5+01:00"], ["2026-11-29"]),
        ({"format": "time"}, ["10:00:00Z"], ["25:00:00Z"]),
        ({"format": "uuid"}, ["123e4567-e89b-12d3-a456-426614174000"], ["123e4567"]),
        ({"format": "email"}, ["a.b@example.org"], ["a@", "ab"]),
        ({"format": "ipv4"}, ["10.0.0.255"], ["10.0.0.256"]),
        ({"format": "hostname"}, ["a-b.example"], ["-a", "a b"]),
        ({"format": "colour"}, ["anything goes"], []),
        ({"type": ["string", "null"], "maxLength": 2}, ["ab", "null"], ["abc"]),
        ({"type": ["string", "integer"], "pattern": "^x"}, ["xy", "42"], ["y", "4.5"]),
    ],
)
def test_strings_keep_their_form(schema: dict[str, Any], right: list[str], wrong: list[str]) -> None:
    for strict in (True, False):
        function = tool({"type": "string"} | schema, strict)
        assert [accepts(function, value) for value in right] == [True] * len(right)
        assert [accepts(function, value) for value in wrong] == [False] * len(wrong)
        for value in right:
            if value != "null" and not value.isdigit():
                (read,) = parse_output(
                    f"<tool_call>\n<function=f>\n<parameter=k>\n{value}\n</parameter>\n</function>\n</tool_call>",
                    [function], thinking_open=False,
                ).tool_calls  # fmt: skip
                assert json.loads(read.arguments) == {"k": value}


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"anyOf": [{"type": "string", "maxLength": 2}, {"type": "null"}]}, ["ab", "null"], ["abc"]),
        ({"anyOf": [{"$ref": "#/$defs/Code"}, {"type": "array", "items": {"type": "integer"}}]},
         ["x1", "[1]"], ["x", "[a]"]),
        ({"anyOf": [{"type": "string"}, {"type": "null"}], "maxLength": 2}, ["ab", "null"], ["abc"]),
        ({"anyOf": [{"type": "string", "maxLength": 1}, {"type": "string"}]}, ["ab"], []),
        ({"$ref": "#/$defs/Code"}, ["x1"], ["1x"]),
    ],
)  # fmt: skip
def test_forms_in_alternatives_and_references(schema: Any, right: list[str], wrong: list[str]) -> None:
    function = tool(schema, **{"$defs": {"Code": {"type": "string", "pattern": "^x[0-9]$"}}})
    assert [accepts(function, value) for value in right] == [True] * len(right)
    assert [accepts(function, value) for value in wrong] == [False] * len(wrong)


@pytest.mark.parametrize(
    ("schema", "part"),
    [
        ({"format": "uri"}, "the format 'uri' cannot be enforced"),
        ({"format": "ipv6"}, "the format 'ipv6' cannot be enforced"),
        ({"pattern": "^a|b$"}, "cannot be enforced; ^ and $"),
        ({"pattern": "a(^b|c)"}, "cannot be enforced; ^ and $"),
        ({"minLength": 3, "maxLength": 2}, "less than minLength"),
        ({"maxLength": "5"}, "maxLength must be a whole number"),
        ({"pattern": 5}, "pattern must be a string"),
        ({"pattern": "[^\\s\\S]"}, "no text can have its form"),
        ({"pattern": "^a+$", "format": "date"}, "no text can have its form"),
    ],
)
def test_what_cannot_be_enforced_is_refused_under_strict_and_free_without(schema: dict[str, Any], part: str) -> None:
    schema = {"type": "string"} | schema
    with pytest.raises(UserError) as caught:
        accepts(tool(schema), "x")
    assert str(caught.value).startswith("f.k: ")
    assert part in str(caught.value)
    assert accepts(tool(schema, strict=False), "any text\n</para")


SCHEMA = {
    "type": "object",
    "properties": {
        "code": {"type": "string", "pattern": "^[a-c]{3}$"},
        "day": {"type": "string", "format": "date"},
        "name": {"type": "string", "maxLength": 5},
        "note": {"anyOf": [{"type": "null"}, {"type": "string", "minLength": 1, "maxLength": 4}]},
    },
    "required": ["code", "day", "name", "note"],
}


@pytest.mark.parametrize("seed", range(4))
def test_a_random_model_keeps_them(client: Any, seed: int) -> None:
    function = {"name": "f", "strict": True, "parameters": SCHEMA}
    body = {"messages": [{"role": "user", "content": "Hi"}], "enable_thinking": False, "tool_choice": "required",
            "tools": [{"type": "function", "function": function}], "parallel_tool_calls": False, "seed": seed,
            "temperature": 1.5, "max_tokens": 300}  # fmt: skip
    choice = client.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMA)


@pytest.mark.parametrize(
    "schema", [{"format": "uri"}, {"pattern": "(?=a)"}, {"pattern": "("}, {"pattern": "[^\\s\\S]"}]
)
def test_a_request_that_cannot_be_met_is_told(client: Any, schema: dict[str, Any]) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "tools": [tool({"type": "string"} | schema)],
            "max_tokens": 5}  # fmt: skip
    for choice in ("required", "auto"):
        response = client.post("/v1/chat/completions", json=body | {"tool_choice": choice})
        assert response.status_code == 400, response.text
        assert response.json()["error"]["param"] == "tools"


@pytest.mark.parametrize("opening", ["", "Sure.\n<tool_call>\n<function=f>\n<parameter=k>\n"])
def test_the_model_decides_whether_to_call_and_a_strict_call_is_held_to_its_schema(server: Any, opening: str) -> None:
    """The next token of an output that has come as far as `opening`."""
    body = ChatRequest.model_validate({
        "messages": [{"role": "user", "content": "Hi"}], "enable_thinking": False,
        "tools": [tool({"type": "string", "pattern": "^[a-c]{3}$"})],
    })  # fmt: skip
    grammar = plan_chat(server.service, body).request.sampling.grammar
    tokenizer = server.tokenizer
    matcher = GrammarCompiler(tokenizer, tokenizer.vocab_size, [tokenizer.eos_id]).compile(grammar)
    for token in tokenizer.encode(opening):
        matcher.accept(token)
    assert not matcher.error
    allowed = matcher.mask()
    a, z = (tokenizer.encode(letter)[0] for letter in "az")
    assert allowed[a]
    assert allowed[[z, tokenizer.eos_id]].tolist() == [not opening] * 2


def test_tools_that_are_not_strict_leave_an_output_alone(server: Any) -> None:
    body = ChatRequest.model_validate({"messages": [{"role": "user", "content": "Hi"}], "tools": [tool({}, None)]})
    assert plan_chat(server.service, body).request.sampling.grammar is None


def test_a_random_model_beside_a_strict_tool_writes_text(client: Any) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "tools": [tool({"maxLength": 2})], "max_tokens": 40,
            "enable_thinking": False, "seed": 1}  # fmt: skip
    choice = client.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert choice["message"]["content"]
    assert "tool_calls" not in choice["message"]
