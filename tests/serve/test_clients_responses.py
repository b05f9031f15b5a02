"""The `openai` package's Responses API against a running server: shapes, events, tools, reasoning, forms, refusals."""

from __future__ import annotations

import json
from typing import Literal

import httpx2
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, Field, TypeAdapter

EVENTS = TypeAdapter(ResponseStreamEvent)
TOOLS = [
    {
        "type": "function",
        "name": "set_light",
        "description": "Switch a light.",
        "parameters": {
            "type": "object",
            "properties": {
                "room": {"type": "string", "enum": ["kitchen", "attic"]},
                "level": {"type": "integer", "minimum": 0, "maximum": 9},
            },
            "required": ["room", "level"],
        },
        "strict": None,
    },
    {
        "type": "function",
        "name": "choose",
        "parameters": {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]},
        "strict": None,
    },
]
PLAIN = {"reasoning": {"effort": "none"}}
THINKING = {"reasoning": {"effort": "low"}, "extra_body": {"thinking_budget": 4}}
ITEMS = [
    {"role": "user", "content": [{"type": "input_text", "text": "Light the attic."}]},
    {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "It is dark."}]},
    {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
     "content": [{"type": "output_text", "text": "One moment.", "annotations": []}]},
    {"type": "function_call", "call_id": "call_1", "name": "set_light", "arguments": '{"room": "attic", "level": 3}'},
    {"type": "function_call_output", "call_id": "call_1", "output": "done"},
    {"role": "user", "content": "Thanks."},
]  # fmt: skip


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def ask(client, server):
    """A response, greedy, short and without thinking unless told otherwise."""

    def create(input="Say something.", **options):
        options = {"max_output_tokens": 12, "temperature": 0, "store": False} | PLAIN | options
        return client.responses.create(model=server.model, input=input, **options)

    return create


@pytest.fixture
def stream(server):
    """The checked events of a stream."""

    def events(url=server.url, **body):
        body = {"input": "Say something.", "max_output_tokens": 12, "temperature": 0} | PLAIN | body
        body |= body.pop("extra_body", {})
        answer = httpx2.post(f"{url}/v1/responses", json=body | {"stream": True}, timeout=60)
        assert answer.status_code == 200, answer.text
        found = []
        for block in answer.text.strip().split("\n\n"):
            if block.startswith(":"):
                continue
            name, data = block.split("\n")
            event = json.loads(data.removeprefix("data: "))
            assert name == f"event: {event['type']}"
            assert event["sequence_number"] == len(found)
            EVENTS.validate_python(event, strict=True)
            found.append(event)
        return found

    return events


def without_ids(items):
    hidden = ("id", "call_id")
    return [{key: value for key, value in item.items() if key not in hidden} for item in items]


def test_a_response(ask, server):
    answer = ask(metadata={"a": "b"}, instructions="Be brief.")
    Response.model_validate(answer.to_dict(), strict=True)
    assert answer.model == server.model
    assert answer.status in ("completed", "incomplete")
    (message,) = answer.output
    assert (message.type, message.role) == ("message", "assistant")
    assert answer.output_text == message.content[0].text != ""
    assert answer.metadata == {"a": "b"}
    assert answer.instructions == "Be brief."
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    again = ask(instructions="Be brief.")
    assert again.output_text == answer.output_text
    assert again.id != answer.id


def test_it_is_the_answer_of_the_chat_endpoint(ask, client, server):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say something."}]
    chat = client.chat.completions.create(
        model=server.model, messages=messages, max_tokens=12, temperature=0, reasoning_effort="none"
    )
    answer = ask(instructions="Be brief.")
    assert answer.output_text == chat.choices[0].message.content
    assert answer.usage.input_tokens == chat.usage.prompt_tokens
    assert answer.status == ("completed" if chat.choices[0].finish_reason == "stop" else "incomplete")


def test_items_are_read_as_the_chat_endpoint_reads_messages(ask, server):
    function = {"name": "set_light", "arguments": '{"room": "attic", "level": 3}'}
    calls = [{"id": "call_1", "type": "function", "function": function}]
    messages = [
        {"role": "user", "content": "Light the attic."},
        {"role": "assistant", "content": "One moment.", "reasoning": "It is dark.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
        {"role": "user", "content": "Thanks."},
    ]
    functions = [
        {"type": "function", "function": {k: tool[k] for k in ("name", "description", "parameters") if k in tool}}
        for tool in TOOLS
    ]
    body = {"messages": messages, "tools": functions, "enable_thinking": False}
    wanted = httpx2.post(f"{server.url}/tokenize", json=body).json()["count"]
    assert ask(ITEMS, tools=TOOLS).usage.input_tokens == wanted


def test_two_turns_of_the_assistant_stay_two(ask, server):
    def turns(items):
        return ask([{"role": "user", "content": "x"}, *items]).usage.input_tokens

    one, two = ({"role": "assistant", "content": text} for text in ("a", "b"))
    reasoning = {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "c"}]}
    body = {"enable_thinking": False, "messages": [{"role": "user", "content": "x"}, one, two]}
    assert turns([one, two]) == httpx2.post(f"{server.url}/tokenize", json=body).json()["count"]
    body["messages"][2] = {"role": "assistant", "reasoning": "c", "content": "b"}
    assert turns([one, reasoning, two]) == httpx2.post(f"{server.url}/tokenize", json=body).json()["count"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        THINKING | {"max_output_tokens": 100},
        {"tools": TOOLS, "tool_choice": "required", "max_output_tokens": 90},
        THINKING | {"tools": TOOLS, "tool_choice": {"type": "function", "name": "choose"},
                    "parallel_tool_calls": False, "max_output_tokens": 160},
        {"tools": TOOLS, "tool_choice": {"type": "function", "name": "choose"}, "max_output_tokens": 9},
    ],
    ids=["text", "thinking", "tools", "thinking and a tool", "a call cut off"],
)  # fmt: skip
def test_a_stream_adds_up_to_the_response(ask, stream, options):
    whole = ask(**options).to_dict()
    events = stream(**options)
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    last = events[-1]
    assert last["type"] == f"response.{whole['status']}"
    assert without_ids(last["response"]["output"]) == without_ids(whole["output"])
    assert last["response"]["incomplete_details"] == whole["incomplete_details"]
    assert last["response"]["usage"]["output_tokens"] == whole["usage"]["output_tokens"]
    for index, item in enumerate(last["response"]["output"]):
        own = [event for event in events if event.get("output_index") == index]
        assert own[0]["type"] == "response.output_item.added"
        assert own[0]["item"]["id"] == item["id"]
        assert own[-1]["type"] == "response.output_item.done"
        assert own[-1]["item"] == item
        written = "".join(event["delta"] for event in own if event["type"].endswith(".delta"))
        assert written == (item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"])
        assert {event["item_id"] for event in own[1:-1]} == {item["id"]}


def test_the_streaming_helper_collects_the_response(client, server, ask):
    options = {"max_output_tokens": 90, "temperature": 0, "extra_body": {"thinking_budget": 4}}
    with client.responses.stream(model=server.model, input="Say something.", **options) as stream:
        events = list(stream)
        snapshot = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    whole = ask(reasoning={}, **options)
    assert events[-1].type in ("response.completed", "response.incomplete")
    assert snapshot == whole.output_text
    assert events[-1].response.output_text == whole.output_text


def test_a_named_function_is_called(ask):
    choice = {"type": "function", "name": "choose"}
    answer = ask(tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, max_output_tokens=90)
    assert answer.status == "completed"
    (call,) = answer.output
    assert (call.type, call.name, call.status) == ("function_call", "choose", "completed")
    assert json.loads(call.arguments) in ({"n": 1}, {"n": 2})
    followed = ask(
        [{"role": "user", "content": "x"}, *(item.to_dict() for item in answer.output),
         {"type": "function_call_output", "call_id": call.call_id, "output": "ok"}], tools=TOOLS,
    )  # fmt: skip
    assert followed.usage.output_tokens > 0


def test_tools_that_only_openai_runs_are_left_out(ask):
    others = [{"type": "web_search"}, {"type": "custom", "name": "apply_patch"}, {"type": "namespace", "name": "a"}]
    answer = ask(tools=[*others, *TOOLS])
    assert [tool.name for tool in answer.tools] == ["set_light", "choose"]
    assert answer.usage.input_tokens == ask(tools=TOOLS).usage.input_tokens


def test_effort_none_switches_thinking_off(ask):
    thought = ask(**THINKING, max_output_tokens=90)
    assert thought.output[0].type == "reasoning"
    assert thought.output[0].content[0].text
    assert thought.usage.output_tokens_details.reasoning_tokens > 0
    plain = ask(reasoning={"effort": "none"})
    assert [item.type for item in plain.output] == ["message"]
    assert plain.usage.output_tokens_details.reasoning_tokens == 0


class Plan(BaseModel):
    level: int = Field(ge=0, le=9)
    mode: Literal["slow", "fast"]


def test_an_answer_of_a_schema(client, server):
    answer = client.responses.parse(
        model=server.model, input="Plan.", text_format=Plan, max_output_tokens=80, temperature=0, **PLAIN
    )
    assert answer.status == "completed"
    assert isinstance(answer.output_parsed, Plan)
    assert answer.text.format.type == "json_schema"


def test_any_json_object(ask):
    answer = ask(text={"format": {"type": "json_object"}}, max_output_tokens=4)
    assert answer.output_text.startswith("{")


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": "word " * 9000}, "input"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"max_output_tokens": 99999}, "max_output_tokens"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"tools": [{"type": "function", "name": "f", "parameters": {"type": 3}}]}, "tools[0].parameters"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": 3}}}}, "text.format.schema"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
    ],
)
def test_wrong_requests_name_the_field(server, wrong, field):
    body = {key: value for key, value in ({"input": "x"} | wrong).items() if value is not None}
    answer = httpx2.post(f"{server.url}/v1/responses", json=body, timeout=60)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == field
    assert error["message"]
    assert "\n" not in error["message"]


def test_nothing_is_stored(client, server):
    answer = client.responses.create(model=server.model, input="x", store=True, max_output_tokens=2)
    assert answer.to_dict()["store"] is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)


def test_a_stream_that_fails_says_so(make_engine, start, stream):
    hurried = start(make_engine(), request_timeout=0.3)
    *_, last = stream(hurried.url, max_output_tokens=3000, reasoning={"effort": "high"})
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"]["code"] == "server_error"
