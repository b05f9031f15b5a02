"""Bodies of every POST endpoint, whole and streamed: answered, or refused in the endpoint's own form of an error."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nano3.engine.launch import small_tokenizer
from tests.fuzz.inputs import ENCODINGS, fuzz, json_text, mutated, tried
from tests.serve.conftest import new_engine, running

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "f", "description": "d", "parameters": PARAMETERS}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"city": "Paris"}'}}
TOOLS = [{"type": "function", "function": FUNCTION}]
MESSAGES = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
    {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
]
SAMPLING = {"temperature": 0.7, "top_p": 0.9, "seed": 3, "stop": ["\n\n"], "max_tokens": 4}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": PARAMETERS, "strict": True}}
ANTHROPIC_TOOLS = [{"name": "f", "description": "d", "input_schema": PARAMETERS}]
BLOCKS = [
    {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
    {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "f", "input": {"city": "Paris"}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "sunny"}]},
]
ITEMS = [
    {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
    {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"city": "Paris"}'},
    {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
]
BODIES = {
    "/v1/chat/completions": [
        SAMPLING | {"messages": MESSAGES, "tools": TOOLS, "tool_choice": "auto", "n": 2},
        SAMPLING | {"messages": MESSAGES[:2], "response_format": SCHEMA, "logprobs": True, "top_logprobs": 2},
        {"messages": MESSAGES[1:2], "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 4,
         "chat_template_kwargs": {"enable_thinking": False}, "logit_bias": {"5": 1.5}},
    ],
    "/v1/completions": [
        SAMPLING | {"prompt": "x", "n": 2, "logprobs": 2, "echo": True},
        {"prompt": [[5, 6], [7]], "stream": True, "max_tokens": 4, "logit_bias": {"5": -100}},
    ],
    "/v1/messages": [
        {"messages": BLOCKS, "system": [{"type": "text", "text": "Be short."}], "tools": ANTHROPIC_TOOLS,
         "tool_choice": {"type": "auto"}, "max_tokens": 4, "stop_sequences": ["x"], "temperature": 0.5},
        {"messages": BLOCKS[:1], "max_tokens": 4, "stream": True, "thinking": {"type": "disabled"}},
    ],
    "/v1/messages/count_tokens": [{"messages": BLOCKS, "system": "Be short.", "tools": ANTHROPIC_TOOLS}],
    "/v1/responses": [
        {"input": ITEMS, "instructions": "Be short.", "tools": [{"type": "function"} | FUNCTION],
         "max_output_tokens": 4, "tool_choice": "auto", "metadata": {"a": "b"}},
        {"input": "x", "max_output_tokens": 4, "stream": True, "reasoning": {"effort": "low"},
         "text": {"format": {"type": "json_schema", "name": "s", "schema": PARAMETERS}}},
    ],
    "/tokenize": [{"prompt": "x", "add_special_tokens": True}, {"messages": MESSAGES, "tools": TOOLS}],
    "/detokenize": [{"tokens": [5, 6, 7]}],
}  # fmt: skip
LIMITS = {"max_tokens": 4, "max_completion_tokens": 4, "max_output_tokens": 4, "n": 3, "best_of": 3}


@pytest.fixture(scope="module")
def client():
    torch.set_num_threads(1)
    with running(new_engine(small_tokenizer(600))) as server, server.client() as found:
        found.timeout = 60
        yield found


def short(path, body):
    """Few tokens asked for: what is checked is whether there is an answer."""
    if isinstance(body, dict):
        for name, most in LIMITS.items():
            if isinstance(body.get(name), int | float) and body[name] > most:
                body[name] = most
        body.setdefault("max_output_tokens" if "responses" in path else "max_tokens", 4)
    return body


def check_error(path, answer):
    """OpenAI's form, or Anthropic's under its own paths."""
    body = answer.json()
    error = body["error"]
    assert isinstance(error["message"], str), body
    assert error["message"], body
    assert error["type"], body
    assert ("/v1/messages" in path) == (body.get("type") == "error"), body


def events(text):
    """The JSON of a stream's events."""
    lines = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


@fuzz(6)
@given(data=st.data())
@pytest.mark.parametrize("path", BODIES)
def test_a_body_is_answered_or_refused(client, path, data):
    body = short(path, data.draw(st.sampled_from(BODIES[path]).flatmap(mutated)))
    content = data.draw(st.sampled_from(ENCODINGS))(json_text(body))
    tried[f"POST {path}"] += 1
    answer = client.post(path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        check_error(path, answer)
    elif answer.headers["content-type"].startswith("text/event-stream"):
        found = events(answer.text)
        assert found
        assert not [event for event in found if event.get("error")], found
    else:
        assert isinstance(answer.json(), dict)
    assert client.get("/health/ready").status_code == 200


@pytest.mark.parametrize("path", BODIES)
def test_the_bodies_as_they_are_are_answered(client, path):
    """What the target changes is right before the change."""
    for body in BODIES[path]:
        answer = client.post(path, json=body)
        assert answer.status_code == 200, answer.text
