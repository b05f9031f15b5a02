"""Many requests at once, against a local server that fails as it is told to."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from nano3.client.asynchronous import FORM, AsyncServer, FormRefusedError, RefusedError, ServerGoneError
from nano3.client.attempts import NoAnswerError, Tries
from nano3.client.chat import read_chat
from nano3.client.limit import Limit
from nano3.config.errors import UserError

from ..curate.model_server import Faults, ModelServer

FAST = {"first_wait": 0.01, "longest_wait": 0.05, "patient": True}


def body(text: str) -> dict:
    return {"model": "scripted", "messages": [{"role": "user", "content": text}], "max_tokens": 8}


class Waits(list):
    """Notes how long a client would wait, and hardly does."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)
        await asyncio.sleep(0.01)


@pytest.fixture
def server():
    server = ModelServer()
    yield server
    server.stop()


def asked(server: ModelServer, texts, tries=None, *, returns=False, more=None, **given):
    """Texts of the answers to some messages that are sent at once, or what was raised where `returns`; the client.

    `more`: other keys of the requests."""

    async def run():
        client = AsyncServer(server.url, tries=tries or Tries(3, deadline=10.0, **FAST), **given)
        try:
            work = (client.chat(body(text) | (more or {})) for text in texts)
            found = await asyncio.gather(*work, return_exceptions=returns)
        finally:
            await client.close()
        return [one if isinstance(one, BaseException) else read_chat(one[0]).text for one in found], client

    return asyncio.run(run())


def test_every_message_gets_its_own_answer_and_no_more_than_so_many_at_once(server):
    server.reply, server.seconds = (lambda prompt, _: prompt.upper()), 0.01
    texts = [f"message {i}" for i in range(60)]
    answers, client = asked(server, texts, concurrency=5)
    assert answers == [text.upper() for text in texts]
    assert server.most <= 5
    assert client.counts.requests == 60


def from_now(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize("form", [str, from_now])
def test_retry_after_is_kept_as_a_number_and_as_a_date(server, form):
    replies = [429, 200]
    server.faults = Faults(retry_after=form(20))
    server.draw = lambda: "full" if replies.pop(0) == 429 else "answered"
    waits = Waits()
    answers, _ = asked(server, ["a"], Tries(deadline=60.0, patient=True), sleep=waits)
    assert answers == ["fine"]
    assert len(waits) == 1
    assert 17 <= waits[0] <= 20


@pytest.mark.parametrize("kind", ["broken", "hang", "malformed", "full"])
def test_what_may_pass_is_tried_again(server, kind):
    kinds = [kind, kind, "answered"]
    server.faults = Faults(hang_seconds=30, retry_after="0")
    server.draw = lambda: kinds.pop(0)
    answers, client = asked(server, ["a"], timeout=0.3)
    assert answers == ["fine"]
    assert client.counts.requests == 3
    assert client.counts.full == 2 * (kind == "full")


def test_a_full_server_is_asked_as_often_as_it_takes(server):
    server.faults = Faults(retry_after="0")
    kinds = ["full"] * 12
    server.draw = lambda: kinds.pop() if kinds else "answered"
    assert asked(server, ["a"], Tries(3, deadline=60.0, **FAST))[0] == ["fine"]


def test_a_server_with_few_places_gets_everything_done(server):
    server.capacity, server.seconds, server.faults = 3, 0.02, Faults(retry_after="0")
    texts = [f"message {i}" for i in range(80)]
    answers, client = asked(server, texts, Tries(3, deadline=60.0, **FAST), concurrency=40)
    assert answers == ["fine"] * 80
    assert client.limit.now < 40
    assert client.counts.full > 0


def test_the_limit_is_halved_once_for_all_under_way_and_grows_by_answers():
    limit = Limit(16)
    began = time.monotonic()
    for _ in range(16):
        limit.full(began)
    assert limit.now == 8
    limit.full(time.monotonic(), asked=60.0)
    limit.full(time.monotonic())
    assert limit.now == 4, "within the time that the server asked for, another refusal says nothing new"
    for _ in range(4):
        limit.answered()
    assert limit.now == 5
    for _ in range(100):
        limit.answered()
    assert limit.now == 16
    for _ in range(9):
        limit._deaf_until = 0.0
        limit.full(time.monotonic())
    assert limit.now == 1


def test_seconds_count_as_often_as_places_are_missing():
    limit = Limit(8)
    limit.full(time.monotonic())
    began, before = time.monotonic(), limit.stretched()
    time.sleep(0.05)
    after, ended = limit.stretched(), time.monotonic()
    assert 2 * 0.05 <= after - before <= 2 * (ended - began)


def test_a_place_that_a_cancelled_request_waited_for_goes_to_the_next():
    async def run():
        limit, done = Limit(1), []

        async def use(name):
            async with limit.place():
                await asyncio.sleep(0.01)
                done.append(name)

        tasks = [asyncio.create_task(use(name)) for name in "abc"]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        return done

    assert asyncio.run(run()) == ["a", "c"]


@pytest.mark.parametrize("alone", [True, False])
def test_a_request_that_always_fails_is_given_up_while_the_server_answers_others(server, alone):
    server.reply = lambda prompt, _: (500, "out of memory") if prompt == "bad" else "fine"
    texts = ["bad"] if alone else ["bad", *(f"message {i}" for i in range(20))]
    found, _ = asked(server, texts, returns=True)
    assert isinstance(found[0], NoAnswerError)
    assert "in 3 attempts (HTTP 500: out of memory)" in str(found[0])
    assert found[1:] == ["fine"] * (len(texts) - 1)


def test_a_server_that_answers_nothing_is_gone_after_the_deadline(server):
    server.reply, told = (lambda prompt, _: (503, "loading sk-secret")), []
    began = time.monotonic()
    found, _ = asked(server, ["a", "b"], Tries(2, deadline=0.6, **FAST), returns=True, tell=told.append,
                     api_key="sk-secret")  # fmt: skip
    assert all(isinstance(one, ServerGoneError) for one in found)
    assert "no answer for 0.6 s (HTTP 503: loading ***); run the same command again" in str(found[0])
    assert time.monotonic() - began >= 0.6
    assert len(told) == 1
    assert "waiting for it" in told[0]
    assert "sk-secret" not in told[0]


def test_a_server_that_is_full_for_long_is_told_though_it_is_asked_however_often(server, monkeypatch):
    monkeypatch.setattr("nano3.client.asynchronous.QUIET_SECONDS", 0.1)
    server.reply, told = (lambda prompt, _: (429, "your quota is used up")), []
    asked(server, ["a"], Tries(2, deadline=0.4, **FAST), returns=True, tell=told.append)
    assert len(told) == 1
    assert "no answer for 0 s (HTTP 429: your quota is used up); waiting for it" in told[0]


def test_the_deadline_counts_from_the_last_answer_of_a_server_that_went_away(server):
    server.reply, waits = (lambda prompt, _: "fine" if prompt == "a" else (503, "gone")), []

    async def slept(seconds: float) -> None:
        waits.append(seconds)
        await asyncio.sleep(seconds)

    async def run() -> None:
        tries = Tries(3, first_wait=0.1, longest_wait=0.2, deadline=0.4, patient=True)
        client = AsyncServer(server.url, tries=tries, sleep=slept)
        try:
            waiting = asyncio.ensure_future(client.chat(body("b")))
            while not waits:
                await asyncio.sleep(0.001)
            await client.chat(body("a"))
            waits.clear()
            with pytest.raises(ServerGoneError):
                await waiting
        finally:
            await client.close()

    asyncio.run(run())
    assert sum(waits) <= 0.4 + 0.02


def test_a_server_that_comes_back_before_the_deadline_loses_nothing(server):
    """It stumbles once more at each message, when it answers others already."""
    back, seen = time.monotonic() + 1.0, {"message 0", "Reply with the word yes."}

    def reply(prompt, _):
        if time.monotonic() < back:
            return 503, "loading"
        known = prompt in seen
        seen.add(prompt)
        return "fine" if known else (503, "almost")

    server.reply = reply
    texts = [f"message {i}" for i in range(40)]
    assert asked(server, texts, Tries(2, deadline=60.0, **FAST), concurrency=8)[0] == ["fine"] * 40


def test_a_refusal_of_one_request_is_its_own_fault(server):
    server.reply = lambda prompt, _: (400, "too long") if prompt == "long" else "fine"
    found, client = asked(server, ["long"], returns=True)
    assert isinstance(found[0], RefusedError)
    assert (found[0].status, str(found[0])) == (400, "HTTP 400: too long")
    assert client.counts.requests == 2, "a short request was sent to see whether it is this one's fault"


@pytest.mark.parametrize(
    ("status", "words", "filtered"),
    [
        (400, "triggering Azure OpenAI's content management policy", True),
        (403, "requires moderation. Your input was flagged", True),
        (403, "not this one", False),
    ],
)
def test_a_request_that_a_filter_does_not_let_through_is_told_from_a_refused_key(server, status, words, filtered):
    server.reply = lambda prompt, _: (status, words) if prompt == "bad" else "fine"
    found, _ = asked(server, ["good", "bad", "good too"], returns=True)
    assert (found[0], found[2]) == ("fine", "fine")
    assert isinstance(found[1], RefusedError)
    assert (found[1].status, found[1].filtered) == (status, filtered)


def test_a_key_that_loses_its_rights_ends_the_run(server):
    """Though requests were answered before, and the words are those of a filter."""
    server.reply = lambda prompt, _: "fine" if len(server.prompts) < 3 else (403, "blocked by policy")
    with pytest.raises(UserError, match=r"refuses the API key \(HTTP 403: blocked by policy\)"):
        asked(server, [f"message {i}" for i in range(5)], concurrency=1)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_refusal_of_all_requests_ends_with_the_servers_words(server, status):
    server.reply = lambda prompt, _: (status, "no such sk-secret")
    with pytest.raises(UserError, match=rf"refuses .*HTTP {status}: no such \*\*\*"):
        asked(server, ["a", "b"], api_key="sk-secret")


@pytest.mark.parametrize(
    ("status", "words"), [(400, "unknown parameter"), (422, "Extra inputs are not permitted"), (500, "oops")]
)
def test_a_form_that_a_server_refuses_is_told_from_what_it_refuses_anyway(server, status, words):
    server.reply = lambda prompt, sent: (status, words) if FORM in sent or prompt == "bad" else "fine"
    with_form = {"more": {FORM: {"type": "json_object"}}, "returns": True}
    found, _ = asked(server, ["good", "bad"], Tries(2, deadline=10.0, **FAST), **with_form)
    assert [type(one) for one in found] == [FormRefusedError] * 2
    assert words in str(found[0])
    server.reply = lambda prompt, _: (400, words) if prompt == "bad" else "fine"
    found, _ = asked(server, ["good", "bad"], **with_form)
    assert (found[0], type(found[1])) == ("fine", RefusedError)
    server.reply = lambda prompt, _: (400, words)
    found, _ = asked(server, ["good"], **with_form)
    assert type(found[0]) is UserError


def test_what_is_no_openai_compatible_server_is_said(server):
    server.reply = lambda prompt, _: {"message": {"content": 5}}
    with pytest.raises(UserError, match="answers, but not as an OpenAI-compatible server: its message is no text"):
        asked(server, ["a"])
