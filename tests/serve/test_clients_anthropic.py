"""The `anthropic` package against a running server: shapes, events, tools, thinking, counts, errors."""

from __future__ import annotations

import json
import time

import anthropic
import httpx2
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from nano3.engine.engine import Engine

GREEDY = {"temperature": 0}  # no parameter of newer clients
EVENTS = TypeAdapter(RawMessageStreamEvent)
TOOLS = [
    {
        "name": "set_light",
        "description": "Switch a light.",
        "input_schema": {
            "type": "object",
            "properties": {
                "room": {"type": "string", "enum": ["kitchen", "attic"]},
                "level": {"type": "integer", "minimum": 0, "maximum": 9},
            },
            "required": ["room", "level"],
        },
    },
    {
        "name": "choose",
        "input_schema": {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]},
    },
]
RESULT = [
    {"role": "user", "content": "Light the attic."},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "The attic is dark.", "signature": "any"},
            {"type": "text", "text": "One moment."},
            {"type": "tool_use", "id": "call_1", "name": "set_light", "input": {"room": "attic", "level": 3}},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "call_1", "content": [{"type": "text", "text": "done"}]},
            {"type": "text", "text": "Thanks."},
        ],
    },
]


@pytest.fixture
def client(server):
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def ask(client, server):
    """A message, greedy and short unless told otherwise."""

    def create(content="Say something.", **options):
        options = {"max_tokens": 12, "messages": [{"role": "user", "content": content}]} | options
        return client.messages.create(model=server.model, extra_body=GREEDY, **options)

    return create


@pytest.fixture
def stream(server):
    """The checked events of a stream."""

    def events(**body):
        body = {"max_tokens": 12, "temperature": 0, "messages": [{"role": "user", "content": "Say something."}]} | body
        answer = httpx2.post(f"{server.url}/v1/messages", json=body | {"stream": True}, timeout=60)
        assert answer.status_code == 200, answer.text
        found = []
        for block in answer.text.strip().split("\n\n"):
            name, data = block.split("\n")
            event = json.loads(data.removeprefix("data: "))
            assert name == f"event: {event['type']}"
            if event["type"] != "ping":
                EVENTS.validate_python(event, strict=True)
                found.append(event)
        return found

    return events


def added_up(events):
    """Content and end of a stream, put together from its events alone."""
    assert [events[0]["type"], *(e["type"] for e in events[-2:])] == ["message_start", "message_delta", "message_stop"]
    blocks, open_at = [], None
    for event in events[1:-2]:
        if event["type"] == "content_block_start":
            assert open_at is None
            assert event["index"] == len(blocks)
            blocks.append(dict(event["content_block"]))
            open_at = event["index"]
        elif event["type"] == "content_block_stop":
            assert event["index"] == open_at
            if "json" in blocks[-1]:
                blocks[-1]["input"] = json.loads(blocks[-1].pop("json"))
            open_at = None
        else:
            assert event["index"] == open_at
            delta = event["delta"]
            field = {"input_json_delta": "partial_json", "signature_delta": "signature"}.get(delta["type"])
            field = field or delta["type"].removesuffix("_delta")
            target = "json" if field == "partial_json" else field
            blocks[-1][target] = blocks[-1].get(target, "") + delta[field]
    assert open_at is None
    return blocks, events[-2]["delta"], events[-2]["usage"]


def test_a_message(ask, server):
    answer = ask()
    Message.model_validate(answer.to_dict(), strict=True)
    assert answer.model == server.model
    (block,) = answer.content
    assert block.type == "text"
    assert block.text
    assert answer.stop_reason in ("end_turn", "max_tokens")
    assert 1 <= answer.usage.output_tokens <= 12
    assert ask().content == answer.content


def test_it_is_the_answer_of_the_chat_endpoint(ask, server):
    body = {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say something."}],
        "max_tokens": 12,
        "temperature": 0,
        "enable_thinking": False,
    }
    chat = httpx2.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
    for system in ("Be brief.", [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]):
        answer = ask(system=system)
        assert answer.content[0].text == chat["choices"][0]["message"]["content"]
        usage = answer.usage
        assert usage.input_tokens + usage.cache_read_input_tokens == chat["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"thinking": {"type": "enabled", "budget_tokens": 4}, "max_tokens": 100},
        {"tools": TOOLS, "tool_choice": {"type": "any"}, "max_tokens": 90},
        {"tools": TOOLS, "tool_choice": {"type": "tool", "name": "choose", "disable_parallel_tool_use": True},
         "thinking": {"type": "enabled", "budget_tokens": 4}, "max_tokens": 160},
    ],
    ids=["text", "thinking", "tools", "thinking and a tool"],
)  # fmt: skip
def test_a_stream_adds_up_to_the_message(ask, stream, options):
    whole = ask(**options)
    blocks, end, usage = added_up(stream(**options))
    of_whole = whole.to_dict()
    for block in blocks + of_whole["content"]:
        block.pop("id", None)  # of a call, new each time
    if whole.stop_reason != "max_tokens":
        assert blocks == of_whole["content"]
    assert end == {"stop_reason": whole.stop_reason, "stop_sequence": whole.stop_sequence}
    assert usage["output_tokens"] == whole.usage.output_tokens
    total = whole.usage.input_tokens + whole.usage.cache_read_input_tokens
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == total


def test_the_streaming_helper_collects_the_message(client, server, ask):
    options = {"thinking": {"type": "enabled", "budget_tokens": 4}, "max_tokens": 90}
    messages = [{"role": "user", "content": "Say something."}]
    with client.messages.stream(model=server.model, messages=messages, extra_body=GREEDY, **options) as stream:
        final = stream.get_final_message()
    whole = ask(**options)
    assert [block.to_dict() for block in final.content] == [block.to_dict() for block in whole.content]
    assert final.stop_reason == whole.stop_reason


def test_a_named_tool_is_called(ask):
    choice = {"type": "tool", "name": "choose", "disable_parallel_tool_use": True}
    answer = ask(tools=TOOLS, tool_choice=choice, max_tokens=90)
    assert answer.stop_reason == "tool_use"
    (call,) = answer.content
    assert call.type == "tool_use"
    assert call.id
    assert call.name == "choose"
    assert call.input in ({"n": 1}, {"n": 2})


def test_a_call_that_is_cut_off_has_what_was_complete(ask, stream):
    options = {"tools": TOOLS, "tool_choice": {"type": "tool", "name": "choose"}, "max_tokens": 8}
    answer = ask(**options)
    assert answer.stop_reason == "max_tokens"
    assert all(isinstance(block.input, dict) for block in answer.content if block.type == "tool_use")


def test_thinking_is_off_unless_switched_on(ask):
    assert all(block.type == "text" for block in ask().content)
    assert all(block.type == "text" for block in ask(thinking={"type": "disabled"}).content)
    budget = {"type": "enabled", "budget_tokens": 4}
    first, *_ = ask(thinking=budget, max_tokens=90).content
    assert first.type == "thinking"
    assert first.signature
    assert ask(thinking={"type": "adaptive"}).content[0].type == "thinking"


def test_results_of_tools_are_read_as_the_chat_endpoint_reads_them(ask, server):
    calls = [{"id": "call_1", "type": "function",
              "function": {"name": "set_light", "arguments": {"room": "attic", "level": 3}}}]  # fmt: skip
    messages = [
        {"role": "user", "content": "Light the attic."},
        {"role": "assistant", "content": "One moment.", "reasoning": "The attic is dark.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
        {"role": "user", "content": "Thanks."},
    ]
    functions = [
        {"type": "function", "function": {k: v for k, v in tool.items() if k != "input_schema"}
         | {"parameters": tool["input_schema"]}} for tool in TOOLS
    ]  # fmt: skip
    body = {"messages": messages, "tools": functions, "enable_thinking": False}
    wanted = httpx2.post(f"{server.url}/tokenize", json=body).json()["count"]
    answer = ask(messages=RESULT, tools=TOOLS, max_tokens=4)
    assert answer.usage.input_tokens + answer.usage.cache_read_input_tokens == wanted


def test_a_failed_tool_is_told_as_an_error(client, server):
    def count(**extra):
        result = {"type": "tool_result", "tool_use_id": "call_1"} | extra
        messages = [*RESULT[:2], {"role": "user", "content": [result]}]
        return client.messages.count_tokens(model=server.model, messages=messages).input_tokens

    assert count(content="no bulb", is_error=True) == count(content="Error: no bulb")
    assert count(content="no bulb", is_error=True) > count(content="no bulb")


@pytest.mark.parametrize(
    "options", [{}, {"system": "Be brief."}, {"messages": RESULT, "tools": TOOLS}, {"thinking": {"type": "adaptive"}}]
)
def test_counted_tokens_are_those_of_the_message(client, server, ask, options):
    answer = ask(**options)
    options = {"messages": [{"role": "user", "content": "Say something."}]} | options
    count = client.messages.count_tokens(model=server.model, **options).input_tokens
    assert count == answer.usage.input_tokens + answer.usage.cache_read_input_tokens


def test_a_stop_sequence_is_named(ask, stream):
    text = ask(max_tokens=24).content[0].text
    stop = text[len(text) // 2 :][:3]
    answer = ask(max_tokens=24, stop_sequences=[stop, "never written"])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", stop)
    assert answer.content[0].text == text[: text.index(stop)]
    _, end, _ = added_up(stream(max_tokens=24, stop_sequences=[stop]))
    assert end == {"stop_reason": "stop_sequence", "stop_sequence": stop}


def test_an_answer_of_a_schema(ask):
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"]}
    schema["additionalProperties"] = False
    answer = ask(output_config={"format": {"type": "json_schema", "schema": schema}}, max_tokens=40)
    assert answer.stop_reason == "end_turn"
    assert json.loads(answer.content[0].text)["n"] in range(10)


def test_more_tokens_than_fit_may_be_asked_for(make_engine, start):
    small = start(make_engine(max_context=64))
    body = {"max_tokens": 32000, "messages": [{"role": "user", "content": "x"}], "temperature": 0}
    answer = httpx2.post(f"{small.url}/v1/messages", json=body, timeout=60).json()
    assert answer["stop_reason"] in ("model_context_window_exceeded", "end_turn")
    assert answer["usage"]["input_tokens"] + answer["usage"]["output_tokens"] <= 64
    long = {"messages": [{"role": "user", "content": "word " * 100}], "max_tokens": 1}
    refused = httpx2.post(f"{small.url}/v1/messages", json=long, timeout=60)
    assert refused.status_code == 400
    assert refused.json()["error"]["type"] == "invalid_request_error"


USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [USER, {"role": "assistant", "content": "I"}]}, "prefill"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "text: is missing"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use", "name": "f"}]}]}, "cannot hold"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
        ({"tools": [{"name": "f", "input_schema": {"type": 3}}]}, "tools[0].input_schema.type"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "other"}}, "other"),
        ({"tool_choice": {"type": "any"}}, "no tools"),
        ({"thinking": {"type": "enabled"}}, "budget_tokens"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"type": 3}}}}, "output_config.format.schema"),
    ],
)
def test_wrong_requests_are_refused_in_its_form(client, server, wrong, words):
    body = {"max_tokens": 4, "messages": [USER]} | wrong
    answer = httpx2.post(f"{server.url}/v1/messages", json={k: v for k, v in body.items() if v is not None}, timeout=60)
    assert answer.status_code == 400
    error = answer.json()
    assert error["type"] == "error"
    assert error["error"]["type"] == "invalid_request_error"
    assert words in error["error"]["message"]
    assert "\n" not in error["error"]["message"]


def test_errors_are_the_clients_own(client, server):
    with pytest.raises(anthropic.NotFoundError, match="does not exist") as caught:
        client.messages.create(model="other", max_tokens=4, messages=[USER])
    assert caught.value.type == "not_found_error"
    with pytest.raises(anthropic.BadRequestError):
        client.messages.count_tokens(model=server.model, messages=[])


def test_both_headers_carry_the_key(make_engine, start):
    locked = start(make_engine(), api_keys=("first", "second"))
    options = {"model": locked.model, "messages": [USER]}
    for right in ({"api_key": "second"}, {"auth_token": "first"}):
        with anthropic.Anthropic(base_url=locked.url, max_retries=0, **right) as client:
            assert client.messages.count_tokens(**options).input_tokens > 0
    stranger = anthropic.Anthropic(base_url=locked.url, max_retries=0, api_key="wrong")
    with stranger as client, pytest.raises(anthropic.AuthenticationError) as caught:
        client.messages.count_tokens(**options)
    assert caught.value.type == "authentication_error"
    assert httpx2.get(f"{locked.url}/v1/models", headers={"x-api-key": "first"}).status_code == 200
    assert httpx2.get(f"{locked.url}/v1/models", headers={"x-api-key": ""}).status_code == 401


class Steady(Engine):
    """Takes at least 20 ms a step, so that no machine ends an answer within a short time."""

    def step(self):
        time.sleep(0.02)
        return super().step()


def test_a_stream_that_fails_ends_with_an_error_event(make_engine, start):
    hurried = start(make_engine(Steady), request_timeout=0.05)
    body = {"max_tokens": 3000, "messages": [USER], "stream": True, "thinking": {"type": "adaptive"}}
    answer = httpx2.post(f"{hurried.url}/v1/messages", json=body, timeout=60)
    name, data = answer.text.strip().split("\n\n")[-1].split("\n")
    assert name == "event: error"
    assert json.loads(data.removeprefix("data: "))["error"]["type"] == "timeout_error"
