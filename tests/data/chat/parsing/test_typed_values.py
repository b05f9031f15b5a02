"""Values of tool arguments by schema."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nano3.data.chat.parsing.typed_values import JSON_TYPES, json_value, parameter_types


def read(text: str, *types: str) -> Any:
    return json.loads(json_value(text, frozenset(types)))


def types_of(schema: Any, **root: Any) -> set[str]:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"k": schema}, **root}}}]
    return set(parameter_types(tools)["f"]["k"])


@pytest.mark.parametrize(
    ("text", "types", "value"),
    [
        ("5", ["string"], "5"),
        (" null ", ["string"], " null "),
        ("5", ["integer"], 5),
        ("5.0", ["integer"], 5),
        ("2.5", ["integer"], "2.5"),
        ("1e3", ["integer"], 1000),
        ("007", ["integer"], 7),
        ("+7", ["integer"], 7),
        (".5", ["number"], 0.5),
        ("5.", ["number"], 5.0),
        ("1,000", ["integer"], "1,000"),
        ("1,5", ["number"], "1,5"),
        ("1,0", ["boolean"], "1,0"),
        ("1,000", ["integer", "array"], "1,000"),
        ("1, 2", ["array"], [1, 2]),
        ("'a'", ["integer"], "'a'"),
        ("0x10", ["array"], "0x10"),
        ("true", ["integer"], "true"),
        ("1", ["object"], "1"),
        ("12345678901234567890123", ["number"], 12345678901234567890123),
        ("TRUE", ["boolean"], True),
        ("False", ["boolean"], False),
        ("1", ["boolean"], True),
        ("0", ["boolean"], False),
        ("0", ["boolean", "integer"], 0),
        ("2", ["boolean"], "2"),
        ("TRUE", ["boolean", "string"], "TRUE"),
        ('"{\\"a\\": 1}"', ["object"], {"a": 1}),
        ('"[1, 2]"', ["array"], [1, 2]),
        ('"[1, 2]"', ["object"], '"[1, 2]"'),
        ('"[1, 2]"', ["array", "string"], '"[1, 2]"'),
        ('{"a":1},', ["object"], '{"a":1},'),
        ("[1]", ["object"], "[1]"),
        ('{"k": True, "z": null}', ["object"], {"k": True, "z": None}),
        ('["a\nb"]', ["array"], ["a\nb"]),
        ("1.0", ["string", "integer"], "1.0"),
        ("1e3", ["string", "integer"], "1e3"),
        ("007", ["string", "integer"], "007"),
        ("1.0", ["string", "number"], 1.0),
        ("2.50", ["string", "number"], "2.50"),
        ("2.50", [], "2.50"),
        ("123e45", [], "123e45"),
        ("0.1234567890123456789", [], "0.1234567890123456789"),
        ("007", [], "007"),
        ("-0", [], "-0"),
        ("2.5", [], 2.5),
        ("[1e999]", ["array"], "[1e999]"),
        ("5.0", ["number"], 5.0),
        ("True", ["boolean"], True),
        ("false", ["boolean"], False),
        ("None", ["null"], None),
        ("null", ["integer"], None),
        ('["a", 1]', ["array"], ["a", 1]),
        ("['a', True]", ["array"], ["a", True]),
        ("{'a': None}", ["object"], {"a": None}),
        ("{1, 2}", ["object"], "{1, 2}"),
        ("{broken", ["object"], "{broken"),
        ("NaN", ["number"], "NaN"),
        ("1e999", ["number"], "1e999"),
        ("[" * 100_000, ["array"], "[" * 100_000),
        ("five", ["integer"], "five"),
        ("None", ["string", "null"], None),
        ("5", ["string", "null"], "5"),
        ("5", ["string", "integer"], 5),
        ("5", ["string", "number"], 5),
        ('"q"', ["string", "integer"], '"q"'),
        ("{'a': 1}", ["string", "object"], {"a": 1}),
        ("", ["integer"], ""),
        ("5", [], 5),
        ("True", [], True),
        ('{"a": 1}', [], {"a": 1}),
        ("{'a': 1}", [], "{'a': 1}"),
        ('"q"', [], '"q"'),
        ("some text", [], "some text"),
        (" padded ", [], " padded "),
    ],
)
def test_values(text: str, types: list[str], value: Any) -> None:
    result = read(text, *types)
    assert result == value
    assert type(result) is type(value)


def test_half_a_surrogate_pair_can_be_sent() -> None:
    text = json_value('["\\ud800"]', frozenset({"array"}))
    assert text.encode() == b'["\\ud800"]'


@pytest.mark.parametrize(
    ("text", "types"),
    [("2.50", ["number"]), ("0.1234567890123456789", ["number"]), ('{"price": 2.50}', []), ("[1.10, 2]", ["array"])],
)
def test_numbers_keep_their_digits(text: str, types: list[str]) -> None:
    assert json_value(text, frozenset(types)) == text


@given(
    text=st.text(max_size=12) | st.text(st.sampled_from("0123456789.,eE+-xTrueFalsn[]{}\"':1a \n"), max_size=12),
    types=st.sets(st.sampled_from(["integer", "number", "boolean", "array", "object"]), min_size=1),
)
def test_what_goes_out_is_of_the_schema_or_the_text(text: str, types: set[str]) -> None:
    value = json.loads(json_value(text, frozenset(types)))
    kinds = {JSON_TYPES.get(type(value), "null")}
    assert kinds & (types | {"null"}) or value == text or (kinds == {"integer"} and "number" in types)


@given(text=st.text(max_size=12) | st.text(st.sampled_from("0123456789.eE+-"), max_size=12))
def test_without_a_type_a_number_is_its_text(text: str) -> None:
    written = json_value(text, frozenset())
    assert json.loads(written) == text or written == text.strip() or text.strip() in ("True", "False", "None")


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"type": "string"}, {"string"}),
        ({"type": ["string", "null"]}, {"string", "null"}),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, {"integer", "null"}),
        ({"oneOf": [{"type": "array"}, {"enum": ["a"]}]}, {"array", "string"}),
        ({"enum": ["a", 1, None]}, {"string", "integer", "null"}),
        ({"const": True}, {"boolean"}),
        ({"type": "string", "enum": ["a", "b"]}, {"string"}),
        ({"type": "str"}, {"string"}),
        ({"type": ["int", "float"]}, {"integer", "number"}),
        ({"type": "dict"}, {"object"}),
        ({"type": "any"}, set()),
        ({}, set()),
        (True, set()),
        ({"$ref": "#/$defs/missing"}, set()),
    ],
)
def test_types_in_a_schema(schema: Any, types: set[str]) -> None:
    assert types_of(schema) == types


def test_references_are_followed_but_not_for_ever() -> None:
    definitions = {"Color": {"enum": ["red"]}, "Loop": {"anyOf": [{"$ref": "#/$defs/Loop"}, {"type": "null"}]}}
    assert types_of({"allOf": [{"$ref": "#/$defs/Color"}]}, **{"$defs": definitions}) == {"string"}
    assert types_of({"$ref": "#/$defs/Loop"}, **{"$defs": definitions}) == {"null"}


@pytest.mark.parametrize("tools", [None, [], [{"name": "f"}], [{"name": "f", "parameters": None}]])
def test_tools_without_schemas(tools: Any) -> None:
    assert not any(parameter_types(tools).values())
