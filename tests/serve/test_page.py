"""The chat page in headless Chromium, against a server that plays scripted answers and against the real one."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from nano3.serve.page_routes import HEADERS, INDEX, TYPES

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]  # fmt: skip
USAGE = {"prompt_tokens": 21, "completion_tokens": 12, "prompt_tokens_details": {"cached_tokens": 16}}
WAIT_S = 10


def delta(finish=None, **fields):
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def text_answer(text, **more):
    pieces = [text[i : i + 7] for i in range(0, len(text), 7)]
    return [*(delta(content=piece) for piece in pieces), delta(finish="stop", **more), {"choices": [], "usage": USAGE}]


class Script:
    """What the next requests are answered with, and what was asked."""

    def __init__(self):
        self.plays: list = []
        self.asked: list[dict] = []
        self.keys: list[str | None] = []
        self.key: str | None = None
        self.go_on = threading.Event()
        self.left = threading.Event()

    def play(self, *chunks, done=True):
        """Answer with these chunks; a callable among them is called in its place."""
        self.plays.append((chunks, done))

    def refuse(self, status, message, code=None, **headers):
        self.plays.append((status, {"error": {"message": message, "code": code}}, headers))

    def wait(self):
        assert self.go_on.wait(WAIT_S)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    script: Script

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path == "/v1/models":
            return self.models()
        name = self.path.removeprefix("/") or INDEX
        body = (files("nano3.serve") / "page" / name).read_bytes()
        self.answer(200, body, TYPES[Path(name).suffix], HEADERS)

    def models(self):
        if self.refused():
            return
        self.answer(200, json.dumps({"object": "list", "data": [{"id": "scripted-model"}]}).encode(), TYPES[".js"])

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.refused():
            return
        self.script.asked.append(body)
        self.script.keys.append(self.headers["Authorization"])
        play = self.script.plays.pop(0)
        if isinstance(play[0], int):
            status, error, headers = play
            self.answer(status, json.dumps(error).encode(), "application/json", headers)
        else:
            self.stream(*play)

    def refused(self):
        key = self.script.key
        if key is None or self.headers["Authorization"] == f"Bearer {key}":
            return False
        self.answer(401, b'{"error": {"message": "Incorrect API key."}}', "application/json")
        return True

    def answer(self, status, body, content_type, headers=()):
        self.send_response(status)
        for name, value in {"Content-Type": content_type, "Content-Length": str(len(body)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def stream(self, chunks, done):
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            for chunk in chunks:
                if callable(chunk):
                    chunk()
                else:
                    self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            if done:
                self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.script.left.set()


@pytest.fixture
def script():
    """A running scripted server; `script.url` is its address."""
    script = Script()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Scripted", (Handler,), {"script": script}))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    script.url = f"http://127.0.0.1:{server.server_port}/"
    script.close = lambda: (server.shutdown(), server.server_close())
    yield script
    script.go_on.set()
    script.close()


@pytest.fixture(scope="module")
def browser():
    if not Path(CHROMIUM).exists():
        pytest.fail(f"{CHROMIUM} is missing: the chat page is tested in it (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def tab(browser):
    """A fresh page; any script error or refused resource fails the test."""
    context = browser.new_context(viewport={"width": 1000, "height": 800}, permissions=["clipboard-read"])
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab = context.new_page()
    wrong: list[str] = []
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("console", lambda line: "Content Security" in line.text and wrong.append(line.text))
    yield tab
    context.close()
    assert not wrong


@pytest.fixture
def chat(tab, script):
    tab.goto(script.url)
    expect(tab.locator("#model")).to_contain_text("scripted-model")
    return tab


def ask(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


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
    summary.click()
    expect(chat.locator(".thought")).to_have_text("Let me see. ")
    script.go_on.set()
    expect(summary).to_contain_text("Thought for")
    expect(chat.locator(".thought")).to_have_text("Let me see. 2 + 2.")
    expect(chat.locator(".text")).to_have_text("Four.")
    summary.click()
    expect(chat.locator(".thought")).not_to_be_visible()
    script.play(*text_answer("Five."))
    ask(chat, "and one more?")
    expect(chat.locator(".answer .text").last).to_have_text("Five.")
    assert script.asked[1]["messages"][1] == {
        "role": "assistant", "content": "Four.", "reasoning": "Let me see. 2 + 2."}  # fmt: skip


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
    assert set(script.asked[0]) == {"model", "messages", "stream", "stream_options", "enable_thinking"}
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


def test_thinking_off_asks_for_none(chat, script):
    script.play(*text_answer("a"))
    chat.get_by_text("Thinking", exact=True).click()
    ask(chat, "quick")
    expect(chat.locator(".answer .text")).to_have_text("a")
    assert script.asked[0]["enable_thinking"] is False


def test_a_missing_key_is_asked_for_and_then_used(tab, script):
    script.key = "secret"
    tab.goto(script.url)
    expect(tab.locator("#model")).to_contain_text("needs an API key")
    ask(tab, "hello")
    expect(tab.locator(".error")).to_contain_text("Incorrect API key.")
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


MARKDOWN = """\
# Title

Some **bold**, *slanted*, `a < b` and ~~old~~ text with 2 * 3 * 4 and snake_case_name.

1. one
2. two
   - inner **x**
3. three

```python
def f(x):
    return "<b>" * x  # **not bold**
```

> quoted

| a | b |
|---|---|
| 1 | `2` |

[site](https://example.com/a_(b)) and [bad](javascript:alert(1)) <img src=x onerror=alert(1)>
"""


def test_markdown_becomes_elements_and_never_markup(chat, script):
    script.play(*text_answer(MARKDOWN))
    ask(chat, "format")
    text = chat.locator(".answer .text")
    expect(chat.locator(".stats")).to_be_visible()
    expect(text.locator("h3")).to_have_text("Title")
    expect(text.locator("p strong")).to_have_text("bold")
    expect(text.locator("em")).to_have_text(["slanted"])
    expect(text.locator("p code")).to_have_text("a < b")
    expect(text.locator("p").first).to_contain_text("2 * 3 * 4 and snake_case_name")
    expect(text.locator("ol > li")).to_have_count(3)
    expect(text.locator("ol > li ul li")).to_have_text("inner x")
    expect(text.locator(".code pre")).to_have_text('def f(x):\n    return "<b>" * x  # **not bold**')
    expect(text.locator("blockquote")).to_have_text("quoted")
    expect(text.locator("td")).to_have_text(["1", "2"])
    expect(text.locator("a")).to_have_count(1)
    assert text.locator("a").get_attribute("href") == "https://example.com/a_(b)"
    assert "noopener" in text.locator("a").get_attribute("rel")
    expect(text).to_contain_text("[bad](javascript:alert(1)) <img src=x onerror=alert(1)>")
    expect(text.locator("img")).to_have_count(0)


def test_copy_buttons_copy_code_and_answer(chat, script):
    script.play(*text_answer("Use:\n\n```sh\nls -l\n```"))
    ask(chat, "how?")
    expect(chat.locator(".stats")).to_be_visible()
    chat.locator(".code").get_by_role("button", name="Copy").click()
    expect(chat.locator(".code").get_by_role("button")).to_have_text("Copied")
    assert chat.evaluate("navigator.clipboard.readText()") == "ls -l"
    chat.locator(".foot").get_by_role("button", name="Copy").click()
    expect(chat.locator(".foot").get_by_role("button", name="Copied")).to_be_visible()
    assert chat.evaluate("navigator.clipboard.readText()") == "Use:\n\n```sh\nls -l\n```"


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
        route.continue_(post_data=json.dumps(route.request.post_data_json | {"min_tokens": 3000}))

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


def test_a_phone_shows_everything_without_sideways_scrolling(chat, script):
    chat.set_viewport_size({"width": 360, "height": 640})
    script.play(
        *text_answer("x" * 300 + "\n\n```\n" + "y" * 300 + "\n```\n\n| a | b |\n|--|--|\n| " + "z" * 90 + " | 1 |")
    )
    ask(chat, "wide" * 50)
    expect(chat.locator(".stats")).to_be_visible()
    assert chat.evaluate("document.documentElement.scrollWidth") <= 360
    assert chat.evaluate("document.getElementById('scroller').scrollWidth") <= 360
    for name in ("New chat", "Settings", "Send"):
        expect(chat.get_by_role("button", name=name, exact=True)).to_be_in_viewport()


def test_controls_have_names_and_the_end_is_announced(chat, script):
    chat.get_by_role("button", name="Settings").click()
    nameless = """[...document.querySelectorAll('button, input, select, textarea')].filter(
        (e) => !(e.ariaLabel || e.labels?.length || e.textContent.trim())).map((e) => e.outerHTML)"""
    assert chat.evaluate(nameless) == []
    chat.keyboard.press("Escape")
    expect(chat.locator("#settings")).not_to_be_visible()
    script.play(*text_answer("ok"))
    ask(chat, "hello")
    expect(chat.get_by_role("status")).to_have_text("Answer complete")
    expect(chat.get_by_label("Message", exact=True)).to_be_focused()
