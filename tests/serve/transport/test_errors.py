"""Wrong bodies are told in plain words, with the field at fault."""

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from nano3.serve.schemas import ChatRequest, CompletionRequest, TokenizeRequest
from nano3.serve.transport.errors import add_error_handlers
from nano3.serve.transport.routing import StrictJsonRoute

HELLO = {"messages": [{"role": "user", "content": "Hi"}]}
CLOCK = {"type": "function", "function": {"name": "now"}}


@pytest.fixture(scope="module")
def client():
    """Routes that do nothing but read bodies."""
    app = FastAPI()
    app.router.route_class = StrictJsonRoute
    add_error_handlers(app)

    @app.post("/chat")
    async def chat(body: ChatRequest): ...

    @app.post("/completions")
    async def completions(body: CompletionRequest): ...

    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest): ...

    return TestClient(app)


def told(response):
    assert response.status_code == 400
    error = response.json()["error"]
    return error["message"], error["param"]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"messages": []}, "messages", "must not be empty"),
        ({"messages": "Hi"}, "messages", "must be a list"),
        ({"messages": ["Hi"]}, "messages[0]", "must be a JSON object"),
        ({"messages": [{"content": "Hi"}]}, "messages[0].role", "is missing"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "must be a string or a list"),
        ({"temperature": -1}, "temperature", "must be at least 0"),
        ({"temperature": "hot"}, "temperature", "must be a number"),
        ({"top_p": 0}, "top_p", "must be above 0"),
        ({"n": 1000}, "n", "must be at most 128"),
        ({"n": 1.5}, "n", "must be a whole number"),
        ({"stream": "yes"}, "stream", "must be true or false"),
        ({"stop": ""}, "stop", "must not be empty"),
        ({"stop": 5}, "stop", "must be a string or a list"),
        ({"stop": ["a"] * 65}, "stop", "holds 65 strings; at most 64"),
        ({"stop_token_ids": [1] * 65}, "stop_token_ids", "holds more than 64 items"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1", "must be at most 100"),
        ({"guided_json": 5}, "guided_json", "must be a JSON object or a string"),
        ({"guided_choice": []}, "guided_choice", "must not be empty"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs: true"),
        ({"tools": [CLOCK, CLOCK]}, "tools", "holds two functions of one name"),
        ({"tool_choice": "required"}, "tool_choice", "is required, but there are no tools"),
        ({"continue_final_message": True}, "continue_final_message",
         "is not supported: every answer begins a new message"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named_and_told_in_plain_words(client, fields, param, words):
    assert told(client.post("/chat", json=HELLO | fields)) == (f"{param}: {words}", param)


@pytest.mark.parametrize(
    ("prompt", "param", "words"),
    [
        (5, "prompt", "must be a string or a list"),
        ([-1], "prompt[0]", "must be at least 0"),
        ([1, "a"], "prompt[1]", "must be a whole number"),
        (["a", 1], "prompt[1]", "must be a string"),
        ([[1], ["a"]], "prompt[1][0]", "must be a whole number"),
    ],
)
def test_of_several_forms_the_one_that_fits_furthest_is_told(client, prompt, param, words):
    assert told(client.post("/completions", json={"prompt": prompt})) == (f"{param}: {words}", param)


def test_what_is_wrong_with_a_whole_object_names_a_field(client):
    assert told(client.post("/tokenize", json={})) == ("prompt: give either prompt or messages", "prompt")
    assert told(client.post("/completions", json={"prompt": "a", "suffix": "b"}))[1] == "suffix"
    assert told(client.post("/completions", json={"prompt": "a", "best_of": 3}))[1] == "best_of"


def test_a_long_key_is_not_repeated(client):
    message, param = told(client.post("/chat", json=HELLO | {"logit_bias": {"x" * 10_000: 1}}))
    assert len(message) < 200
    assert param.startswith("logit_bias.xxx")


@pytest.mark.parametrize(
    ("content", "content_type", "words"),
    [
        (b"{}", "text/plain", "the body was sent as text/plain; send JSON with content-type application/json"),
        (b"{}", None, "the body came without a content-type; send JSON with content-type application/json"),
        (b"[]", "application/json", "the body must be a JSON object"),
        (b"null", "application/json", "the body must be a JSON object"),
        (b"", "application/json", "the body is missing; send a JSON object with content-type application/json"),
    ],
)
def test_a_body_that_is_no_json_object(client, content, content_type, words):
    headers = {"content-type": content_type} if content_type else {}
    assert told(client.post("/chat", content=content, headers=headers)) == (words, None)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"role": "user"}, "content"),
        ({"role": "user", "content": None}, "content"),
        ({"role": "system"}, "content"),
        ({"role": "tool", "tool_call_id": "call_1"}, "content"),
        ({"role": "tool", "content": "noon"}, "tool_call_id"),
        ({"role": "tool", "content": "noon", "tool_call_id": ""}, "tool_call_id"),
    ],
)
def test_messages_that_openai_refuses_are_refused(client, message, field):
    for path in ("/chat", "/tokenize"):
        words, param = told(client.post(path, json={"messages": [*HELLO["messages"], message]}))
        assert param == f"messages[1].{field}"
        assert words.startswith(f"{param}: is missing; ")


@pytest.mark.parametrize(
    "message",
    [{"role": "assistant"}, {"role": "assistant", "tool_calls": [{"function": {"name": "now"}}]},
     {"role": "user", "content": ""}, {"role": "tool", "content": "", "tool_call_id": "call_1"}],
)  # fmt: skip
def test_messages_that_hold_little_are_taken(client, message):
    assert client.post("/chat", json={"messages": [*HELLO["messages"], message]}).status_code == 200
