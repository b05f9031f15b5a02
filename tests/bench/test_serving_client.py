"""One streamed request: what counts as output, and what every failure is called."""

import asyncio
import socket

import pytest

from nano3.bench.serving_client import Prompt, Target, find_model, send, settle_options
from nano3.config.errors import UserError

from .conftest import DONE, FINISH, WHOLE, event, piece, usage


def ask(scripted, answer=None, **target):
    if answer is not None:
        scripted.answer = lambda body, number: answer
    aimed = Target(scripted.url, model="m", **target)

    async def go():
        async with aimed.client() as client:
            return await send(client, aimed, Prompt("hello", output_tokens=3))

    return asyncio.run(go())


def test_a_whole_answer_has_times_and_the_servers_counts(scripted):
    sample = ask(scripted, (200, [0.05, WHOLE[0], 0.05, piece("a"), 0.02, piece("b"), 0.02, piece("c"), *WHOLE[-3:]]))
    assert (sample.error, sample.finish, sample.done) == ("", "length", True)
    assert (sample.prompt_tokens, sample.output_tokens, sample.cached_tokens) == (7, 3, 2)
    # The role alone is no output: the first token is the first text.
    assert sample.first_token >= 0.1
    assert len(sample.gaps) == 2
    assert sum(sample.gaps) >= 0.04
    assert sample.end - sample.start >= 0.14


@pytest.mark.parametrize("key", ["content", "reasoning", "reasoning_content", "tool_calls"])
def test_thinking_and_tool_calls_are_output_too(scripted, key):
    said = event(choices=[{"index": 0, "delta": {key: "x"}, "finish_reason": None}])
    assert len(ask(scripted, (200, [said, said, FINISH, DONE])).chunks) == 2


def test_without_usage_tokens_are_counted_as_pieces(scripted):
    sample = ask(scripted, (200, [piece("a"), piece("b"), FINISH, DONE]))
    assert sample.output_tokens is None
    assert sample.tokens == 2


def test_tokens_without_visible_text_still_have_a_first_time(scripted):
    sample = ask(scripted, (200, [WHOLE[0], FINISH, usage(), DONE]))
    assert sample.error == ""
    assert sample.first_token is not None
    assert sample.gaps == []


@pytest.mark.parametrize(
    ("status", "parts", "kind", "detail"),
    [
        (429, {"error": {"message": "queue is\nfull"}}, "HTTP 429", "queue is full"),
        (500, {"detail": "oh"}, "HTTP 500", "oh"),
        (200, [piece("a"), None], "connection broke", ""),
        (200, [piece("a"), DONE], "stream ended early", ""),
        (200, [piece("a")], "stream ended early", ""),
        (200, [piece("a"), event(error={"message": "model died"})], "error in the stream", "model died"),
        (200, [piece("a"), "data: {half\n\n"], "not an OpenAI stream", "JSONDecodeError"),
        (200, [piece("a"), "data: [1]\n\n"], "not an OpenAI stream", ""),
        (200, [piece("a"), 5.0, FINISH, DONE], "timed out", ""),
    ],
)
def test_failures_are_named(scripted, status, parts, kind, detail):
    sample = ask(scripted, (status, parts), timeout=0.5 if kind == "timed out" else 60)
    assert sample.error == kind
    assert detail in sample.detail
    assert sample.end > sample.start


@pytest.mark.parametrize(
    "answer", [(401, {"error": "no key sk-1"}), (200, [event(error={"message": "no key sk-1"})])], ids=["401", "stream"]
)
def test_a_key_that_the_server_repeats_is_not_shown(scripted, answer):
    assert ask(scripted, answer, api_key="sk-1").detail == "no key ***"


def test_a_slow_stream_is_given_up_although_something_comes_now_and_then(scripted):
    sample = ask(
        scripted, (200, [part for _ in range(100) for part in (piece("a"), 0.05)] + [FINISH, DONE]), timeout=0.4
    )
    assert sample.error == "timed out"


def test_bodies_are_those_of_the_endpoint(scripted):
    ask(scripted)
    ask(scripted, endpoint="completions")
    chat, completion = scripted.bodies
    assert chat["path"] == "/v1/chat/completions"
    assert chat["messages"] == [{"role": "user", "content": "hello"}]
    assert completion["path"] == "/v1/completions"
    assert completion["prompt"] == "hello"
    for body in (chat, completion):
        assert body["max_tokens"] == 3
        assert body["stream_options"] == {"include_usage": True}
        assert body["ignore_eos"] is True


def test_the_first_model_and_the_key(scripted):
    scripted.key = "secret"
    assert find_model(Target(scripted.url, api_key="secret")).model == "scripted"
    with pytest.raises(UserError, match="refuses the API key"):
        find_model(Target(scripted.url, api_key="wrong"))


def test_no_server_is_one_line():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UserError, match="is a server running there"):
        find_model(Target(url))


@pytest.mark.parametrize(
    ("refused", "left", "n_notes"),
    [((), ("ignore_eos", "stream_options"), 0), (("ignore_eos",), ("stream_options",), 1),
     (("ignore_eos", "stream_options"), (), 2)],
)  # fmt: skip
def test_settings_that_the_server_does_not_know_are_left_out(scripted, refused, left, n_notes):
    def answer(body, number):
        unknown = [name for name in refused if name in body]
        return (400, {"error": {"message": f"unknown {unknown}"}}) if unknown else (200, WHOLE)

    scripted.answer = answer
    target, notes = asyncio.run(settle_options(Target(scripted.url, model="m"), Prompt("x")))
    assert target.options == left
    assert len(notes) == n_notes


def test_a_server_that_fails_anyway_is_one_line(scripted):
    scripted.answer = lambda body, number: (404, {"error": {"message": "no such model"}})
    with pytest.raises(UserError, match="HTTP 404: no such model"):
        asyncio.run(settle_options(Target(scripted.url, model="m"), Prompt("x")))
    assert len(scripted.bodies) == 1
