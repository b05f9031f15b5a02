"""Values of tool arguments by schema."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nano3.serve.typed_values import json_value, parameter_types


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
        ("2.5", ["integer"], 2.5),
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
    ("schema", "types"),
    [
        ({"type": "string"}, {"string"}),
        ({"type": ["string", "null"]}, {"string", "null"}),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, {"integer", "null"}),
        ({"oneOf": [{"type": "array"}, {"enum": ["a"]}]}, {"array", "string"}),
        ({"enum": ["a", 1, None]}, {"string", "integer", "null"}),
        ({"const": True}, {"boolean"}),
        ({"type": "string", "enum": ["a", "b"]}, {"string"}),
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
