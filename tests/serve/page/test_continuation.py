"""The page that continues a text: its beginning, streaming, the way back and forth, settings, errors; the real server
last."""

from __future__ import annotations

import re

import httpx2
import pytest
from playwright.sync_api import expect

from .scripted import WAIT_S, delta, text_answer, written


def text_of(paper):
    return paper.get_by_label("Text", exact=True)


def go_on(paper):
    paper.get_by_role("button", name="Continue").click()


def test_it_continues_an_opening_of_the_models_kind_and_shows_no_markdown(paper, script):
    expect(text_of(paper)).to_have_value("def ")
    expect(text_of(paper)).to_be_focused()
    script.play(*written("main(x):\n    return **x**  # *y*\n", finish="length"))
    go_on(paper)
    expect(paper.locator(".stats")).to_contain_text("12 tokens · prompt 21, 16 cached")
    expect(text_of(paper)).to_have_value("def main(x):\n    return **x**  # *y*\n")
    assert paper.locator("#marks mark").evaluate_all("nodes => nodes.map((node) => node.textContent)") == [
        "main(x):\n    return **x**  # *y*\n"
    ]
    assert script.asked == [
        {"model": "scripted-model", "prompt": "def ", "max_tokens": 64, "temperature": 0.7, "add_special_tokens": True,
         "truncate_prompt_tokens": -1, "stream": True, "stream_options": {"include_usage": True}}
    ]  # fmt: skip
    script.play(*written("more"))
    paper.keyboard.press("Control+Enter")
    expect(paper.locator("#outcome")).to_contain_text("The model ended the text here.")
    assert script.asked[1]["prompt"] == "def main(x):\n    return **x**  # *y*\n"
    expect(text_of(paper)).to_have_value("def main(x):\n    return **x**  # *y*\nmore")


def test_without_a_known_kind_of_text_it_begins_neutrally(paper, script):
    script.models[0] |= {"opening": "", "base_model": False}
    paper.evaluate("localStorage.clear()")
    paper.add_init_script("localStorage.clear()")
    paper.reload()
    expect(text_of(paper)).to_have_value("Once upon a time")
    script.play(*written(" x"))
    go_on(paper)
    expect(text_of(paper)).to_have_value("Once upon a time x")
    assert "add_special_tokens" not in script.asked[0]


def test_undo_redo_and_retry_go_between_continuations(paper, script):
    for text in ("one(", "two("):
        script.play(*written(text))
    expect(paper.get_by_role("button", name="Undo")).to_be_disabled()
    go_on(paper)
    expect(text_of(paper)).to_have_value("def one(")
    paper.get_by_role("button", name="Undo").click()
    expect(text_of(paper)).to_have_value("def ")
    expect(paper.locator("#marks mark")).to_have_count(0)
    paper.get_by_role("button", name="Redo").click()
    expect(text_of(paper)).to_have_value("def one(")
    paper.get_by_role("button", name="Retry").click()
    expect(text_of(paper)).to_have_value("def two(")
    assert [body["prompt"] for body in script.asked] == ["def ", "def "]
    text_of(paper).focus()
    paper.keyboard.press("Control+z")
    expect(text_of(paper)).to_have_value("def ")
    paper.keyboard.press("Control+Shift+z")
    expect(text_of(paper)).to_have_value("def two(")


def test_what_the_reader_changes_is_no_longer_marked(paper, script):
    script.play(*written("main(arguments)"))
    go_on(paper)
    expect(text_of(paper)).to_have_value("def main(arguments)")
    text_of(paper).evaluate("node => node.setSelectionRange(9, 18)")
    paper.keyboard.type("x")
    expect(text_of(paper)).to_have_value("def main(x)")
    expect(paper.locator("#marks mark")).to_have_text(["main(", ")"])
    paper.keyboard.press("Control+z")  # the browser's own step
    expect(text_of(paper)).to_have_value("def main(arguments)")
    text_of(paper).evaluate("node => node.setSelectionRange(0, 4)")
    paper.keyboard.press("Delete")
    expect(text_of(paper)).to_have_value("main(arguments)")
    assert "".join(paper.locator("#marks").all_text_contents()).rstrip("\u200b") == "main(arguments)"


def test_it_shows_text_while_it_comes_and_stops(paper, script):
    def piece(text):
        return {"choices": [{"index": 0, "text": text, "finish_reason": None}]}

    def endless():
        yield piece("word")
        while not script.left.is_set():
            script.left.wait(0.01)
            yield piece(" word")

    script.plays.append((endless(), True))
    go_on(paper)
    expect(text_of(paper)).to_have_value(re.compile("^def word word word"))
    expect(text_of(paper)).not_to_be_editable()
    paper.keyboard.press("Escape")
    expect(paper.locator("#outcome")).to_contain_text("Stopped.")
    assert script.left.wait(WAIT_S), "the server still sends"
    expect(text_of(paper)).to_be_editable()
    paper.get_by_role("button", name="Undo").click()
    expect(text_of(paper)).to_have_value("def ")


def test_length_temperature_and_settings_are_sent_and_kept(paper, script):
    paper.get_by_label("Length").fill("20")
    paper.get_by_label("Temperature").fill("1.25")
    expect(paper.locator("#heat")).to_have_text("1.25")
    paper.get_by_role("button", name="Settings").click()
    for label, value in {"Top-p": "0.5", "Seed": "3", "Stop before": "\\n\\n", "API key": "k1"}.items():
        paper.get_by_label(label).fill(value)
    paper.get_by_role("button", name="Done").click()
    paper.reload()
    expect(paper.locator("#model")).to_contain_text("scripted-model")
    script.play(*written("a"))
    go_on(paper)
    expect(text_of(paper)).to_have_value("def a")
    wanted = {"max_tokens": 20, "temperature": 1.25, "top_p": 0.5, "seed": 3, "stop": ["\n\n"]}
    assert {name: script.asked[0][name] for name in wanted} == wanted
    assert script.keys == ["Bearer k1"]
    paper.get_by_role("button", name="Settings").click()
    paper.get_by_role("button", name="Reset all").click()
    expect(paper.get_by_label("Length")).to_have_value("64")
    expect(paper.get_by_label("Seed")).to_have_value("")


def test_the_text_outlives_a_reload_and_a_new_text_can_be_undone(paper, script):
    script.play(*written("kept"))
    go_on(paper)
    expect(text_of(paper)).to_have_value("def kept")
    paper.reload()
    expect(text_of(paper)).to_have_value("def kept")
    expect(paper.locator("#marks mark")).to_have_text(["kept"])
    expect(paper.locator("#model")).to_contain_text("scripted-model")
    paper.get_by_role("button", name="New text").click()
    expect(text_of(paper)).to_have_value("def ")
    paper.get_by_role("button", name="Undo").click()
    expect(text_of(paper)).to_have_value("def kept")


def test_an_emptied_text_stays_empty_and_begins_a_document(paper, script):
    text_of(paper).fill("")
    paper.reload()
    expect(paper.locator("#model")).to_contain_text("scripted-model")
    expect(text_of(paper)).to_have_value("")
    script.play(*written("import"))
    go_on(paper)
    expect(text_of(paper)).to_have_value("import")
    assert script.asked[0]["prompt"] == ""


def test_copy_takes_the_whole_text(paper, script):
    script.play(*written("main():\n\tpass"))
    go_on(paper)
    expect(text_of(paper)).to_have_value("def main():\n\tpass")
    paper.get_by_role("button", name="Copy").click()
    expect(paper.get_by_role("button", name="Copied")).to_be_visible()
    assert paper.evaluate("navigator.clipboard.readText()") == "def main():\n\tpass"


def test_a_refusal_is_told_and_leaves_nothing_to_undo(paper, script):
    script.refuse(429, "queue full", **{"Retry-After": "3"})
    script.play(*written("main"))
    go_on(paper)
    expect(paper.get_by_role("alert").filter(has_text="busy")).to_contain_text("Try again in 3 s")
    expect(paper.get_by_role("button", name="Undo")).to_be_disabled()
    paper.get_by_role("button", name="Try again").click()
    expect(text_of(paper)).to_have_value("def main")
    expect(paper.locator(".error")).to_have_count(0)


def test_a_key_is_asked_for_before_anything_is_written(tab, script):
    script.key = "secret"
    script.models[0] |= {"base_model": True, "opening": "def "}
    tab.goto(f"{script.url}continue.html")
    expect(tab.get_by_role("alert").filter(has_text="The server wants an API key.")).to_be_visible()
    expect(tab.get_by_label("API key")).to_be_focused()
    tab.keyboard.type("secret")
    tab.keyboard.press("Enter")
    expect(tab.locator("#model")).to_contain_text("scripted-model")
    expect(text_of(tab)).to_have_value("def ")


def test_the_marks_lie_below_their_words(paper, script):
    """The marks are in a copy of the text: it breaks its lines where the field does."""
    words = " ".join(f"word{i}" for i in range(120)) + "\n\n\ttab " + "x" * 200 + " end"
    for width in (1000, 390):
        paper.set_viewport_size({"width": width, "height": 700})
        text_of(paper).fill(words)
        script.play(*written("done"))
        go_on(paper)
        expect(paper.locator("#marks mark")).to_have_text(["done"])
        field, marks = text_of(paper).bounding_box(), paper.locator("#marks").bounding_box()
        assert field == marks
        assert paper.evaluate("text.scrollHeight <= text.clientHeight && marks.scrollHeight <= marks.clientHeight")
        assert paper.evaluate("document.documentElement.scrollWidth") <= width
        fonts = "[text, marks].map((node) => getComputedStyle(node)).map(({ font, padding }) => font + padding)"
        assert len(set(paper.evaluate(fonts))) == 1


def test_on_a_telephone_an_error_below_a_long_text_is_seen(paper, script):
    paper.set_viewport_size({"width": 390, "height": 700})
    text_of(paper).fill("line\n" * 60)
    script.refuse(429, "queue full")
    paper.keyboard.press("Control+Enter")
    expect(paper.get_by_role("button", name="Try again")).to_be_in_viewport(ratio=1)
    box = paper.get_by_role("button", name="Try again").bounding_box()
    assert paper.evaluate("([x, y]) => document.elementFromPoint(x, y).textContent",
                          [box["x"] + box["width"] / 2, box["y"] + box["height"] - 2]) == "Try again"  # fmt: skip
    rows = [paper.get_by_label(name).bounding_box()["y"] for name in ("Length", "Temperature")]
    assert abs(rows[0] - rows[1]) < 20


def test_controls_have_names_and_the_end_is_announced(paper, script):
    paper.get_by_role("button", name="Settings").click()
    nameless = """[...document.querySelectorAll('button, input, select, textarea')].filter(
        (e) => !(e.ariaLabel || e.labels?.length || e.textContent.trim())).map((e) => e.outerHTML)"""
    assert paper.evaluate(nameless) == []
    paper.keyboard.press("Escape")
    script.play(*written("ok"))
    go_on(paper)
    expect(paper.get_by_role("status")).to_have_text("Done")


def test_both_pages_lead_to_each_other(paper, script):
    pages = paper.get_by_role("navigation", name="Pages")
    expect(pages.locator("[aria-current=page]")).to_have_text("Text")
    pages.get_by_role("link", name="Chat").click()
    expect(paper.locator("#base-note")).to_be_visible()
    script.play(delta(role="assistant"), *text_answer("hi"))
    paper.get_by_label("Message", exact=True).fill("hello")
    paper.keyboard.press("Enter")
    expect(paper.locator(".answer .text")).to_have_text("hi")
    paper.get_by_role("link", name="continues a text").click()
    expect(text_of(paper)).to_have_value("def ")


@pytest.mark.parametrize(("settings", "title"), [({"text_page": True}, "Text"), ({}, "Chat")])
def test_the_first_page_is_that_of_the_models_kind(start, tab, settings, title):
    served = start(None, **settings)
    tab.goto(served.url)
    expect(tab.locator("nav [aria-current=page]")).to_have_text(title)


def test_the_real_server_continues(start, tab):
    served = start(None, base_model=True, text_page=True, opening="def add(")
    tab.goto(served.url)
    expect(text_of(tab)).to_have_value("def add(")
    tab.get_by_label("Length").fill("9")
    tab.get_by_label("Temperature").fill("0")
    go_on(tab)
    expect(tab.locator(".stats")).to_contain_text("tokens · prompt")
    body = {"prompt": "def add(", "max_tokens": 9, "temperature": 0, "add_special_tokens": True}
    answer = httpx2.post(f"{served.url}/v1/completions", json=body, timeout=60, trust_env=False).json()
    expect(text_of(tab)).to_have_value("def add(" + answer["choices"][0]["text"])
