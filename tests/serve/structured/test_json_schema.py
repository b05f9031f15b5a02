"""Schemas out of form are answered 400 with their place, whatever would be built from them."""

import pytest


def ask(client, **body):
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2} | body
    return client.post("/v1/chat/completions", json=body)


def refused(client, **body):
    response = ask(client, **body)
    assert response.status_code == 400, response.text
    return response.json()["error"]


DEEP = "[" * 100_000
NESTED: dict = {}
for _ in range(70):
    NESTED = {"items": NESTED}


@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize(
    ("parameters", "place"),
    [
        ({"properties": [1]}, "properties"),
        ({"properties": {"a": 5}}, "properties.a"),
        ({"properties": {"a": {"type": 5}}}, "properties.a.type"),
        ({"properties": {"a": {"type": ["string", 5]}}}, "properties.a.type"),
        ({"properties": {"a": {"enum": 5}}}, "properties.a.enum"),
        ({"properties": {"a": {"anyOf": 7}}}, "properties.a.anyOf"),
        ({"properties": {"a": {"items": {"oneOf": [{"allOf": 7}]}}}}, "properties.a.items.oneOf[0].allOf"),
        ({"$defs": 5}, "$defs"),
        ({"required": 5}, "required"),
        ({"required": [{"a": 1}]}, "required"),
        (NESTED, "64 levels"),
    ],
)
def test_a_schema_out_of_form_is_told_with_its_place(client, parameters, place, choice):
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    error = refused(client, tools=[tool], tool_choice=choice)
    assert error["param"].startswith("tools[0].function.parameters")
    assert place in error["message"]


@pytest.mark.parametrize(
    "form",
    [
        {"guided_json": DEEP},
        {"structured_outputs": {"json": DEEP}},
        {"guided_json": {"anyOf": 7}},
        {"guided_json": NESTED},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"properties": 3}}}},
    ],
)
def test_a_form_out_of_form_is_refused(client, form):
    assert refused(client, **form)["param"]


def test_a_schema_may_refer_to_itself(client):
    twice = {"anyOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/A"}]}
    parameters = {"properties": {"a": twice}, "$defs": {"A": twice}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    for choice in ("auto", "required"):
        assert ask(client, tools=[tool], tool_choice=choice).status_code == 200


def test_what_clients_write_loosely_is_let_through(client):
    loose = {
        "type": ["string", "null"],
        "required": True,
        "enum": None,
        "items": [{}],
        "default": [[[[]]]],
        "x": {"enum": 5},
    }
    for parameters in (None, {}, {"type": "object", "properties": {"a": loose, "b": True}, "required": None}):
        tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
        assert ask(client, tools=[tool]).status_code == 200
