"""Fields of other servers' APIs: each does what it says, or is refused by name."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

HELLO = [{"role": "user", "content": "Hi"}]
SCHEMA = {
    "type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": False
}  # fmt: skip


def ask(client: Any, path: str = "chat/completions", **fields: Any) -> Any:
    base = {"prompt": "Hi"} if path == "completions" else {"messages": HELLO}
    return client.post(f"/v1/{path}", json={**base, "max_tokens": 40, "seed": 1, **fields})


def refusal(response: Any) -> tuple[str, str]:
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    return error["param"], error["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        {"json_schema": SCHEMA},
        {"json_schema": json.dumps(SCHEMA)},
        {"json_schema": {"name": "a", "schema": SCHEMA}},
    ],
)
def test_schemas_in_llama_cpp_s_places_are_enforced(client: Any, fields: dict[str, Any]) -> None:
    answer = ask(client, enable_thinking=False, **fields).json()["choices"][0]["message"]["content"]
    jsonschema.validate(json.loads(answer), SCHEMA)
    text = ask(client, "completions", **fields).json()["choices"][0]["text"]
    jsonschema.validate(json.loads(text), SCHEMA)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"grammar": 'root ::= "a"'}, "grammar"),
        ({"ebnf": 'root ::= "a"'}, "ebnf"),
        ({"regex": "a+"}, "regex"),
        ({"structural_tag": "{}"}, "structural_tag"),
        ({"guided_whitespace_pattern": ""}, None),
        ({"guided_whitespace_pattern": " *"}, "guided_whitespace_pattern"),
        ({"structured_outputs": {"json_object": True, "whitespace_pattern": " "}},
         "structured_outputs.whitespace_pattern"),
        ({"extra_body": {"top_k": 1}}, "extra_body"),
        ({"extra_body": {}}, None),
        ({"response_format": {"type": "text", "schema": SCHEMA}}, "response_format.schema"),
        ({"response_format": {"type": "json_object", "json_schema": {"schema": SCHEMA}}},
         "response_format.json_schema"),
        ({"response_format": {"type": "json_object", "schema": {"type": 5}}}, "response_format.schema"),
        ({"response_format": {"type": "json_object", "schema": None}}, None),
        ({"json_schema": "{"}, "json_schema"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_forms_that_are_not_read_are_refused(client: Any, path: str, fields: dict[str, Any], param: str | None) -> None:
    response = ask(client, path, **fields)
    if param is None:
        assert response.status_code == 200
    else:
        assert refusal(response)[0] == param


def test_two_forms_are_one_too_many(client: Any) -> None:
    assert "one form only" in refusal(ask(client, json_schema=SCHEMA, guided_regex="a"))[1]


@pytest.mark.parametrize(
    "fields",
    [
        {"thinking": {"type": "disabled"}},
        {"thinking": False},
        {"reasoning": {"effort": "none"}},
        {"reasoning": {"enabled": False}},
        {"reasoning_effort": "none"},
        {"enable_thinking": False, "thinking": {"type": "enabled"}},
    ],
)
def test_thinking_is_switched_off(client: Any, fields: dict[str, Any]) -> None:
    on, off = (ids(client, enable_thinking=value) for value in (True, False))
    assert ids(client, **fields) == off != on


@pytest.mark.parametrize(
    "fields",
    [
        {"thinking": {"type": "enabled"}}, {"thinking": {"type": "adaptive"}}, {"thinking": True},
        {"reasoning": {"effort": "high"}}, {"reasoning": {"enabled": True, "effort": "low"}},
        {"enable_thinking": True, "thinking": {"type": "disabled"}},
    ],
)  # fmt: skip
def test_thinking_stays_on(client: Any, fields: dict[str, Any]) -> None:
    assert ids(client, **fields) == ids(client, enable_thinking=True)


def ids(client: Any, **fields: Any) -> list[int]:
    response = client.post("/tokenize", json={"messages": HELLO, **fields})
    assert response.status_code == 200, response.text
    return response.json()["tokens"]


@pytest.mark.parametrize(
    "fields",
    [
        {"thinking_token_budget": 4},
        {"thinking_token_budget": 4.0},
        {"thinking": {"type": "enabled", "budget_tokens": 4}},
        {"reasoning": {"max_tokens": 4}},
        {"thinking_token_budget": 4, "reasoning_budget": 4, "thinking": {"type": "enabled", "budget_tokens": 4.0}},
    ],
)
def test_budgets_of_every_name_end_the_thinking_part(client: Any, fields: dict[str, Any]) -> None:
    options = {"temperature": 0, "max_tokens": 120, "enable_thinking": True}
    wanted = ask(client, thinking_budget=4, **options).json()
    found = ask(client, **options, **fields).json()
    assert found["choices"] == wanted["choices"]
    assert found["usage"]["completion_tokens_details"]["reasoning_tokens"] < 80


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"thinking": {"type": "off"}}, "thinking.type"),
        ({"thinking": {}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": "many"}}, "thinking.budget_tokens"),
        ({"reasoning": {"enabled": "false"}}, "reasoning"),
        ({"reasoning": {"max_tokens": -1}}, "reasoning.max_tokens"),
        ({"thinking": {"type": "disabled"}, "reasoning": {"enabled": True}}, "thinking"),
        ({"thinking_token_budget": 4, "reasoning_budget": 5}, "thinking_token_budget"),
        ({"thinking_token_budget": "4"}, "thinking_token_budget"),
        ({"chat_template_kwargs": {"enable_thinking": "false"}}, "chat_template_kwargs.enable_thinking"),
        ({"chat_template_kwargs": {"enable_thinking": 0}}, "chat_template_kwargs.enable_thinking"),
        ({"chat_template_kwargs": {"truncate_history_thinking": "no"}},
         "chat_template_kwargs.truncate_history_thinking"),
        ({"chat_template_kwargs": {"chat_template_kwargs": {"enable_thinking": "false"}}},
         "chat_template_kwargs.chat_template_kwargs.enable_thinking"),
    ],
)  # fmt: skip
def test_wishes_for_thinking_that_are_out_of_form(client: Any, fields: dict[str, Any], param: str) -> None:
    assert refusal(ask(client, **fields))[0] == param


@pytest.mark.parametrize(
    "fields",
    [{"thinking": {"type": "disabled"}}, {"reasoning": {"effort": "none"}}, {"thinking_budget": 4},
     {"tools": [{"type": "function", "function": {"name": "f"}}]}],
)  # fmt: skip
def test_what_a_plain_text_has_no_place_for(client: Any, fields: dict[str, Any]) -> None:
    assert refusal(ask(client, "completions", **fields))[0] == next(iter(fields))


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("chat/completions", {"max_tokens": 5.0, "seed": 1.0}),
        ("chat/completions", {"max_completion_tokens": 5.0, "n": 1.0, "top_k": 20.0, "min_tokens": 1.0}),
        ("completions", {"prompt": [1.0, 2], "max_tokens": 5.0, "logprobs": 1.0}),
        ("completions", {"prompt": [[1.0], [2.0, 3]], "stop_token_ids": [4.0]}),
    ],
)
def test_whole_numbers_may_be_written_with_a_point(client: Any, path: str, fields: dict[str, Any]) -> None:
    whole = json.loads(json.dumps(fields).replace(".0", ""))
    answers = [ask(client, path, temperature=0, **values).json() for values in (fields, whole)]
    assert answers[0]["choices"] == answers[1]["choices"]


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("chat/completions", {"max_tokens": 5.5}, "max_tokens"),
        ("completions", {"prompt": [1.5]}, "prompt[0]"),
        ("chat/completions", {"seed": 1e30}, "seed"),
        ("chat/completions", {"max_tokens": 1e9}, "max_tokens"),
        ("chat/completions", {"max_tokens": None, "max_completion_tokens": 10**9}, "max_completion_tokens"),
        ("completions", {"max_tokens": 1e9}, "max_tokens"),
        ("completions", {"prompt": [1] * 5000, "max_tokens": 5}, "prompt"),
        ("chat/completions", {"logit_bias": {"99999": 1}}, "logit_bias"),
        ("completions", {"logit_bias": {"99999": 1}}, "logit_bias"),
    ],
)  # fmt: skip
def test_the_field_at_fault_is_named(client: Any, path: str, fields: dict[str, Any], param: str) -> None:
    assert refusal(ask(client, path, **fields))[0] == param
