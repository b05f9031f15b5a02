"""Conversations on the chat page: answers, thinking, tool calls, stopping, settings, errors; the real server last."""

from __future__ import annotations

import json
import time

import pytest
from playwright.sync_api import expect

from .scripted import WAIT_S, ask, delta, text_answer


def test_an_answer_streams_and_shows_its_figures(chat, script):
    script.play(delta(role="assistant", content="Paris is"), script.wait, *text_answer(" the capital."))
    ask(chat, "Capital of France?")
    expect(chat.locator(".answer .text")).to_have_text("Paris is")
    expect(chat.get_by_role("button", name="Stop")).to_be_visible()
    script.go_on.set()
    expect(chat.locator(".answer .text")).to_have_text("Paris is the capital.")
    expect(chat.locator(".stats")).to_contain_text("tokens/s")
    expect(chat.locator(".stats")).to_contain_text("first token")
    expect(chat.locator(".stats")).to_contain_text("12 tokens · prompt 21, 16 cached")
    expect(chat.get_by_role("button", name="Send", exact=True)).to_be_visible()
    assert script.asked[0]["model"] == "scripted-model"
    assert script.asked[0]["messages"] == [{"role": "user", "content": "Capital of France?"}]
    assert script.asked[0]["stream_options"] == {"include_usage": True}


def test_shift_enter_makes_a_line_and_enter_sends(chat, script):
    script.play(*text_answer("ok"))
    box = chat.get_by_label("Message", exact=True)
    box.type("one")
    chat.keyboard.press("Shift+Enter")
    box.type("two")
    chat.keyboard.press("Enter")
    expect(chat.locator(".answer .text")).to_have_text("ok")
    assert script.asked[0]["messages"][0]["content"] == "one\ntwo"
    expect(box).to_have_value("")


def test_thinking_runs_folded_and_stays_foldable(chat, script):
    script.play(delta(reasoning="Let me see. "), script.wait, delta(reasoning_content="2 + 2."), *text_answer("Four."))
    ask(chat, "2+2?")
    summary = chat.locator(".thinking summary")
    expect(summary).to_contain_text("Thinking …")
    first = summary.text_content()
    expect(summary).not_to_have_text(first)  # the seconds count up
    expect(chat.locator(".thought")).not_to_be_visible()
    expect(chat.locator(".peek")).to_have_text("Let me see.")
    summary.click()
    expect(chat.locator(".thought")).to_have_text("Let me see. ")
    expect(chat.locator(".peek")).not_to_be_visible()
    script.go_on.set()
    expect(summary).to_contain_text("Thought for")
    expect(chat.locator(".thought")).to_have_text("Let me see. 2 + 2.")
    expect(chat.locator(".text")).to_have_text("Four.")
    summary.click()
    expect(chat.locator(".thought")).not_to_be_visible()
    expect(chat.locator(".peek")).not_to_be_visible()
    script.play(*text_answer("Five."))
    ask(chat, "and one more?")
    expect(chat.locator(".answer .text").last).to_have_text("Five.")
    assert script.asked[1]["messages"][1] == {
        "role": "assistant", "content": "Four.", "reasoning": "Let me see. 2 + 2."}  # fmt: skip


def test_only_the_last_lines_of_folded_thinking_show(chat, script):
    script.play(delta(reasoning="first\n" + "more\n" * 300), delta(reasoning="last"), script.wait, *text_answer("ok"))
    ask(chat, "hm")
    peek = chat.locator(".peek")
    expect(peek).to_contain_text("last")
    expect(peek).not_to_contain_text("first")
    assert peek.bounding_box()["height"] < 60


def test_a_base_model_is_named_one_and_thinks_only_when_told_to(tab, script):
    script.models[0]["thinking_default"] = False
    tab.goto(script.url)
    thinking = tab.locator("#thinking")
    expect(tab.locator("#base-note")).to_contain_text("base model")
    expect(thinking).not_to_be_checked()
    script.play(*text_answer("one"))
    ask(tab, "a")
    expect(tab.locator(".answer .text")).to_have_text("one")
    tab.get_by_text("Thinking", exact=True).click()
    expect(thinking).to_be_checked()
    script.play(*text_answer("two"))
    ask(tab, "b")
    expect(tab.locator(".answer .text").last).to_have_text("two")
    assert [body.get("enable_thinking") for body in script.asked] == [None, True]
    tab.reload()
    expect(thinking).to_be_checked()


def test_tool_calls_are_shown_and_take_results(chat, script):
    def call(index, **function):
        first = {"id": f"call_{index}", "type": "function"} if "name" in function else {}
        return delta(tool_calls=[{"index": index, **first, "function": function}])

    script.play(call(0, name="weather", arguments='{"city": "Rö'), call(0, arguments='me", "days": 2}'),
                call(1, name="now", arguments="{}"), delta(finish="tool_calls"))  # fmt: skip
    script.play(*text_answer("It rains."))
    chat.get_by_role("button", name="Settings").click()
    chat.get_by_label("Tools").fill("[{")
    expect(chat.locator("#tools-error")).to_be_visible()
    chat.get_by_label("Tools").fill('[{"type": "function", "function": {"name": "weather"}}]')
    expect(chat.locator("#tools-error")).not_to_be_visible()
    chat.get_by_role("button", name="Done").click()
    ask(chat, "weather?")
    expect(chat.locator(".call-head code")).to_have_text(["weather", "now"])
    expect(chat.locator(".call pre code").first).to_have_text('{\n  "city": "Röme",\n  "days": 2\n}')
    chat.get_by_label("Result of weather").fill("rain")
    chat.get_by_label("Result of now").fill("noon")
    chat.get_by_role("button", name="Send results").click()
    expect(chat.locator(".answer .text").last).to_have_text("It rains.")
    assert script.asked[0]["tools"][0]["function"]["name"] == "weather"
    called, *results = script.asked[1]["messages"][1:]
    assert [json.loads(c["function"]["arguments"]) for c in called["tool_calls"]] == [{"city": "Röme", "days": 2}, {}]
    assert results == [{"role": "tool", "tool_call_id": "call_0", "content": "rain"},
                       {"role": "tool", "tool_call_id": "call_1", "content": "noon"}]  # fmt: skip


def endless(script):
    while not script.left.is_set():
        yield delta(content="word ")
        time.sleep(0.01)


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stopping_ends_the_request_and_keeps_the_part(chat, script, how):
    script.plays.append((endless(script), True))
    ask(chat, "talk")
    expect(chat.locator(".answer .text")).to_contain_text("word")
    if how == "button":
        chat.get_by_role("button", name="Stop").click()
    else:
        chat.keyboard.press("Escape")
    expect(chat.locator(".foot")).to_contain_text("Stopped.")
    assert script.left.wait(WAIT_S), "the server still sends"
    expect(chat.locator(".answer .text")).to_contain_text("word")
    expect(chat.get_by_role("button", name="Send", exact=True)).to_be_visible()


def test_regenerate_and_edit_replace_the_last_turn(chat, script):
    for text in ("first", "second", "third"):
        script.play(*text_answer(text))
    ask(chat, "tell me")
    expect(chat.locator(".answer .text")).to_have_text("first")
    chat.get_by_role("button", name="Regenerate").click()
    expect(chat.locator(".answer .text")).to_have_text("second")
    chat.get_by_role("button", name="Edit").click()
    chat.get_by_label("Edit message").fill("tell me more")
    chat.keyboard.press("Enter")
    expect(chat.locator(".answer .text")).to_have_text("third")
    expect(chat.locator(".turn")).to_have_count(2)
    assert [body["messages"] for body in script.asked] == [
        [{"role": "user", "content": text}] for text in ("tell me", "tell me", "tell me more")
    ]


def test_the_conversation_outlives_a_reload_and_a_new_chat_can_be_undone(chat, script):
    script.play(*text_answer("**kept**"))
    ask(chat, "hello")
    expect(chat.locator(".answer strong")).to_have_text("kept")
    chat.reload()
    expect(chat.locator(".bubble")).to_have_text("hello")
    expect(chat.locator(".answer strong")).to_have_text("kept")
    chat.get_by_role("button", name="New chat").click()
    expect(chat.locator(".turn")).to_have_count(0)
    chat.reload()
    expect(chat.locator(".turn")).to_have_count(0)
    chat.get_by_role("button", name="Back to the previous chat").click()
    expect(chat.locator(".answer strong")).to_have_text("kept")


def test_a_reload_amid_an_answer_keeps_what_had_come(chat, script):
    script.play(delta(reasoning="hm"), delta(content="half"), script.wait)
    ask(chat, "hello")
    expect(chat.locator(".answer .text")).to_have_text("half")
    chat.reload()
    expect(chat.locator(".answer .text")).to_have_text("half")
    expect(chat.locator(".foot")).to_contain_text("Stopped.")


def test_settings_are_sent_kept_and_only_when_set(chat, script):
    script.play(*text_answer("a"))
    script.play(*text_answer("b"))
    ask(chat, "plain")
    expect(chat.locator(".answer .text")).to_have_text("a")
    assert set(script.asked[0]) == {"model", "messages", "stream", "stream_options"}
    chat.get_by_role("button", name="Settings").click()
    for label, value in {"System prompt": "Be brief.", "Thinking budget": "64", "Longest answer": "99", "API key": "k1",
                         "Temperature": "0", "Top-p": "0.9", "Seed": "7"}.items():  # fmt: skip
        chat.get_by_label(label).fill(value)
    chat.get_by_role("button", name="Done").click()
    chat.reload()
    ask(chat, "set")
    expect(chat.locator(".answer .text").last).to_have_text("b")
    sent = script.asked[1]
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    wanted = {"thinking_budget": 64, "max_tokens": 99, "temperature": 0, "top_p": 0.9, "seed": 7}
    assert {name: sent[name] for name in wanted} == wanted
    assert script.keys == [None, "Bearer k1"]
    assert "k1" not in chat.evaluate("JSON.stringify(localStorage)")


def test_thinking_of_less_than_a_millisecond_was_thinking_too(tab, script):
    tab.add_init_script("Date.now = () => 1e12")
    tab.goto(script.url)
    script.play(delta(reasoning="Hm."), *text_answer("Four."))
    ask(tab, "2+2?")
    expect(tab.locator(".thinking summary")).to_contain_text("Thought for 1 ms")


def test_thinking_off_asks_for_none(chat, script):
    script.play(*text_answer("a"))
    chat.get_by_text("Thinking", exact=True).click()
    ask(chat, "quick")
    expect(chat.locator(".answer .text")).to_have_text("a")
    assert script.asked[0]["enable_thinking"] is False


def test_the_page_asks_for_a_key_before_anything_is_typed(tab, script):
    script.key = "secret"
    tab.goto(script.url)
    note = tab.get_by_role("alert").filter(has_text="The server wants an API key.")
    expect(note).to_be_visible()
    expect(tab.get_by_label("API key")).to_be_focused()
    tab.keyboard.type("secret")
    tab.keyboard.press("Enter")
    expect(tab.locator("#model")).to_contain_text("scripted-model")
    expect(tab.locator("#settings")).to_be_hidden()
    tab.get_by_role("button", name="Settings", exact=True).click()
    expect(tab.locator("#key-note")).to_be_hidden()
    tab.reload()
    expect(tab.locator("#model")).to_contain_text("scripted-model")
    expect(tab.locator("#settings")).to_be_hidden()


def test_a_missing_key_is_asked_for_and_then_used(tab, script):
    script.key = "secret"
    tab.goto(script.url)
    expect(tab.locator("#model")).to_contain_text("needs an API key")
    expect(tab.get_by_label("API key")).to_be_focused()
    tab.keyboard.press("Escape")
    ask(tab, "hello")
    expect(tab.locator(".error")).to_contain_text("The server wants an API key.")
    tab.get_by_role("button", name="Open settings").click()
    tab.get_by_label("API key").fill("wrong")
    tab.get_by_role("button", name="Done").click()
    tab.get_by_role("button", name="Try again").click()
    expect(tab.locator(".error")).to_contain_text("does not accept this API key")
    tab.get_by_role("button", name="Open settings").click()
    tab.get_by_label("API key").fill("secret")
    tab.get_by_role("button", name="Done").click()
    expect(tab.locator("#model")).to_contain_text("scripted-model")
    script.play(*text_answer("welcome"))
    tab.get_by_role("button", name="Try again").click()
    expect(tab.locator(".answer .text")).to_have_text("welcome")
    expect(tab.locator(".error")).to_have_count(0)
    assert script.asked[0]["messages"] == [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        ((429, "queue full", None, {"Retry-After": "3"}), ["busy", "Try again in 3 s"]),
        ((400, "prompt of 9000 tokens: more than 4096", "context_length_exceeded", {}), ["9000 tokens", "shorten"]),
        ((500, "engine stopped", None, {}), ["engine stopped"]),
    ],
)
def test_refusals_are_told_and_can_be_tried_again(chat, script, refusal, words):
    status, message, code, headers = refusal
    script.plays.append((status, {"error": {"message": message, "code": code}}, headers))
    script.play(*text_answer("now it works"))
    ask(chat, "hello")
    for word in words:
        expect(chat.locator(".error")).to_contain_text(word)
    chat.get_by_role("button", name="Try again").click()
    expect(chat.locator(".answer .text")).to_have_text("now it works")


def test_a_server_that_is_gone_or_breaks_off_is_told(chat, script):
    script.play(delta(content="half an ans"), done=False)
    ask(chat, "hello")
    expect(chat.locator(".error")).to_contain_text("ended before the answer did")
    expect(chat.locator(".answer .text")).to_have_text("half an ans")
    script.play(delta(content="part"), {"error": {"message": "the model failed"}})
    chat.get_by_role("button", name="Try again").click()
    expect(chat.locator(".error")).to_contain_text("the model failed")
    script.close()
    chat.get_by_role("button", name="Try again").click()
    expect(chat.locator(".error")).to_contain_text("cannot be reached")


def test_the_real_server_answers_it(tab, server):
    tab.goto(server.url)
    expect(tab.locator("#model")).to_contain_text(server.model)
    tab.get_by_role("button", name="Settings").click()
    tab.get_by_label("Thinking budget").fill("2")
    tab.get_by_label("Longest answer").fill("100")
    tab.get_by_label("Seed").fill("3")
    tab.get_by_role("button", name="Done").click()
    ask(tab, "hello")
    expect(tab.locator(".stats")).to_contain_text("tokens · prompt")
    expect(tab.locator(".thinking summary")).to_contain_text("Thought for")
    body = {"model": server.model, "messages": [{"role": "user", "content": "hello"}], "seed": 3, "max_tokens": 100,
            "thinking_budget": 2}  # fmt: skip
    with server.client() as client:
        message = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]
    tab.locator(".foot").get_by_role("button", name="Copy").click()
    assert tab.evaluate("navigator.clipboard.readText()") == message["content"]
    assert tab.locator(".thought").text_content() == message["reasoning"]


def test_stopping_frees_the_real_server(tab, server):
    def long_answer(route):
        route.continue_(post_data=json.dumps(route.request.post_data_json | {"min_tokens": 3000, "seed": 3}))

    tab.route("**/v1/chat/completions", long_answer)
    tab.goto(server.url)
    ask(tab, "hello")
    expect(tab.locator(".thinking")).to_be_visible()
    tab.keyboard.press("Escape")
    expect(tab.locator(".foot")).to_contain_text("Stopped.")
    deadline = time.monotonic() + WAIT_S
    while server.stats().running and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.stats().running == 0
