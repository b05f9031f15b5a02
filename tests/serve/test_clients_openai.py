"""The `openai` package against a running server: shapes, forms that a grammar holds, counts, the model's values."""

from __future__ import annotations

import json
import time
from enum import Enum
from typing import Literal

import httpx2
import openai
import pytest
import torch
from pydantic import BaseModel, Field

from ..plain_decoding import generate

PLAIN = {"enable_thinking": False}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "set_light",
            "description": "Switch a light.",
            "parameters": {
                "type": "object",
                "properties": {
                    "room": {"type": "string", "enum": ["kitchen", "attic"]},
                    "level": {"type": "integer", "minimum": 0, "maximum": 9},
                    "warm": {"type": "boolean"},
                },
                "required": ["room", "level", "warm"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "choose",
            "parameters": {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]},
        },
    },
]


class Room(Enum):
    KITCHEN = "kitchen"
    ATTIC = "attic"


class Plan(BaseModel):
    room: Room
    level: int = Field(ge=0, le=9)
    warm: bool
    mode: Literal["slow", "fast"]


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def ask(client, server):
    """A chat request; without thinking, greedy and short unless told otherwise."""

    def create(content="Say something.", **options):
        options = {"max_tokens": 12, "temperature": 0, "extra_body": PLAIN} | options
        messages = [{"role": "user", "content": content}]
        return client.chat.completions.create(model=server.model, messages=messages, **options)

    return create


def test_chat(ask):
    answer = ask()
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length")
    assert 1 <= answer.usage.completion_tokens <= 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    again = ask()
    assert again.choices[0].message.content == choice.message.content
    assert again.id != answer.id


def test_a_stream_is_the_answer_in_pieces(ask):
    whole = ask(max_tokens=24)
    chunks = list(ask(max_tokens=24, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert len({c.id for c in chunks}) == 1
    assert sum(1 for c in chunks if c.choices and c.choices[0].delta.content) > 3


def test_the_streaming_helper_collects_the_same_answer(client, server, ask):
    options = {"max_tokens": 40, "temperature": 1, "seed": 3, "extra_body": PLAIN | {"guided_regex": "[a-z]{5,9}"}}
    messages = [{"role": "user", "content": "Say something."}]
    with client.chat.completions.stream(model=server.model, messages=messages, **options) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == ask(**options).choices[0].message.content
    assert 5 <= len(final.choices[0].message.content) <= 9


def check_call(call):
    arguments = json.loads(call.function.arguments)
    assert call.id
    if call.function.name == "choose":
        assert arguments in ({"n": 1}, {"n": 2})
        return
    assert call.function.name == "set_light"
    assert set(arguments) == {"room", "level", "warm"}
    assert arguments["room"] in ("kitchen", "attic")
    assert type(arguments["level"]) is int
    assert 0 <= arguments["level"] <= 9
    assert type(arguments["warm"]) is bool


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_required_tools_are_called_with_typed_arguments(ask, seed):
    options = {"tools": TOOLS, "tool_choice": "required", "temperature": 1, "seed": seed, "max_tokens": 400,
               "parallel_tool_calls": False}  # fmt: skip
    choice = ask(**options).choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    check_call(call)
    assert not choice.message.content
    streamed = [c.choices[0] for c in ask(**options, stream=True)]
    pieces = [delta for s in streamed for delta in s.delta.tool_calls or []]
    assert "".join(piece.function.arguments or "" for piece in pieces) == call.function.arguments
    assert [piece.function.name for piece in pieces if piece.function.name] == [call.function.name]
    assert streamed[-1].finish_reason == "tool_calls"


def test_a_named_tool_is_the_one_that_is_called(ask):
    named = {"type": "function", "function": {"name": "choose"}}
    choice = ask(tools=TOOLS, tool_choice=named, max_tokens=200, temperature=1, seed=1).choices[0]
    assert {call.function.name for call in choice.message.tool_calls} == {"choose"}
    check_call(choice.message.tool_calls[0])


def test_a_call_and_its_result_go_back_in(client, server, ask):
    call = ask(tools=TOOLS, tool_choice="required", max_tokens=400, parallel_tool_calls=False).choices[0].message
    result = {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "done"}
    messages = [{"role": "user", "content": "Say something."}, call.model_dump(exclude_none=True), result]
    answer = client.chat.completions.create(
        model=server.model, messages=messages, tools=TOOLS, tool_choice="none", max_tokens=5, extra_body=PLAIN
    )
    assert not answer.choices[0].message.tool_calls
    assert answer.usage.prompt_tokens > ask().usage.prompt_tokens


@pytest.mark.parametrize("seed", [1, 2])
def test_json_schema_by_response_format(ask, seed):
    schema = {"name": "plan", "strict": True, "schema": Plan.model_json_schema()}
    answer = ask(
        response_format={"type": "json_schema", "json_schema": schema}, max_tokens=300, temperature=1, seed=seed
    )
    assert answer.choices[0].finish_reason == "stop"
    Plan.model_validate_json(answer.choices[0].message.content)


def test_parse_gives_the_pydantic_object(client, server):
    answer = client.chat.completions.parse(
        model=server.model,
        messages=[{"role": "user", "content": "Plan."}],
        response_format=Plan,
        max_tokens=300,
        seed=4,
        extra_body=PLAIN,
    )
    assert isinstance(answer.choices[0].message.parsed, Plan)


def test_json_after_thinking_of_a_limited_length(ask):
    schema = {"name": "plan", "schema": Plan.model_json_schema()}
    answer = ask(
        response_format={"type": "json_schema", "json_schema": schema}, max_tokens=400, temperature=1, seed=2,
        extra_body={"enable_thinking": True, "reasoning_budget": 5},
    )  # fmt: skip
    message = answer.choices[0].message
    Plan.model_validate_json(message.content)
    assert message.reasoning == message.reasoning_content
    assert message.reasoning


def test_logprobs_of_a_chat_answer(ask):
    choice = ask(logprobs=True, top_logprobs=3).choices[0]
    entries = choice.logprobs.content
    for entry in entries:
        values = [top.logprob for top in entry.top_logprobs]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert entry.logprob == values[0] <= 0
        assert entry.token == entry.top_logprobs[0].token
    if choice.finish_reason == "length":
        text = b"".join(bytes(entry.bytes) for entry in entries).decode(errors="replace")
        assert text.strip().startswith(choice.message.content.rstrip("\ufffd").strip())


def test_n_answers_differ_and_are_counted(ask):
    answer = ask(n=3, temperature=1, seed=5)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in answer.choices]
    assert len(set(texts)) == 3
    assert texts == [choice.message.content for choice in ask(n=3, temperature=1, seed=5).choices]
    assert 3 <= answer.usage.completion_tokens <= 36


def test_stop_strings_end_an_answer(ask):
    whole = ask(max_tokens=24).choices[0].message.content
    stop = whole[len(whole) // 2 : len(whole) // 2 + 2]
    choice = ask(max_tokens=24, stop=[stop]).choices[0]
    assert choice.message.content == whole[: whole.index(stop)]
    assert choice.finish_reason == "stop"


@pytest.mark.parametrize("prompt", ["The light in the kitchen", [5, 17, 90, 33, 41, 60]])
def test_completions_equal_the_models_own(client, server, prompt):
    ids = server.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    answer = client.completions.create(
        model=server.model, prompt=prompt, max_tokens=10, temperature=0, logprobs=2, echo=True,
        extra_body={"ignore_eos": True, "return_token_ids": True},
    )  # fmt: skip
    model = server.engine.model
    (new,) = generate(model, torch.tensor([ids]), 10, temperature=0)
    with torch.inference_mode():
        expected = torch.log_softmax(model(torch.tensor([ids + new])).float(), -1)[0, :-1]
    expected = expected.gather(1, torch.tensor(ids + new)[1:, None])[:, 0].tolist()
    got = answer.choices[0].logprobs
    assert got.token_logprobs[0] is None
    assert got.token_logprobs[1:] == pytest.approx(expected, abs=1e-4)
    assert answer.choices[0].text == server.tokenizer.decode(ids) + server.tokenizer.decode(new, skip_special=True)
    assert answer.usage.completion_tokens == 10


def test_several_prompts_in_one_request(client, server):
    one = [client.completions.create(model=server.model, prompt=text, max_tokens=6, temperature=0) for text in "ab"]
    both = client.completions.create(model=server.model, prompt=["a", "b"], max_tokens=6, temperature=0)
    assert [choice.text for choice in both.choices] == [answer.choices[0].text for answer in one]
    assert both.usage.completion_tokens == sum(answer.usage.completion_tokens for answer in one)


def test_models(client, server):
    assert [model.id for model in client.models.list()] == [server.model]
    assert client.models.retrieve(server.model).id == server.model


def test_what_is_not_offered_is_not_found(client, server):
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=server.model, input="text")
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_1")
    with pytest.raises(openai.NotFoundError, match="other"):
        client.chat.completions.create(model="other", messages=[{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"n": 0}, "n"),
        ({"top_p": 2}, "top_p"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "none"}}}, "none"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"max_tokens": 10**9}, "context"),
    ],
)
def test_wrong_requests_name_the_field(ask, options, param):
    with pytest.raises(openai.BadRequestError, match=param) as caught:
        ask(**options)
    assert caught.value.type == "invalid_request_error"


def test_a_closed_stream_stops_the_computation(server, ask):
    stream = ask(stream=True, max_tokens=4000 if server.engine.max_context > 5000 else server.engine.max_context // 2,
                 extra_body=PLAIN | {"ignore_eos": True})  # fmt: skip
    next(iter(stream))
    stream.close()
    for _ in range(2000):
        running = [line for line in httpx2.get(f"{server.url}/metrics").text.splitlines()
                   if line.startswith("nano3_running ")]  # fmt: skip
        if running == ["nano3_running 0.0"]:
            break
        time.sleep(0.05)
    assert running == ["nano3_running 0.0"]
