"""How the chat page shows text, on a screen, on a phone and to a screen reader."""

from __future__ import annotations

from playwright.sync_api import expect

from .scripted import ask, text_answer

MARKDOWN = """\
# Title

Some **bold**, *slanted*, `a < b` and ~~old~~ text with 2 * 3 * 4 and snake_case_name.

1. one
2. two
   - inner **x**
3. three:

   ```sh
   ls
     -l
   ```

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
    expect(text.locator(".code pre").first).to_have_text("ls\n  -l")
    expect(text.locator(".code pre").last).to_have_text('def f(x):\n    return "<b>" * x  # **not bold**')
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


def test_the_settings_fit_a_low_window_with_room_below_their_buttons(chat):
    chat.set_viewport_size({"width": 1000, "height": 700})
    chat.get_by_role("button", name="Settings").click()
    dialog = chat.locator("#settings").bounding_box()
    done = chat.get_by_role("button", name="Done").bounding_box()
    below = dialog["y"] + dialog["height"] - done["y"] - done["height"]
    assert 12 <= below <= 40
    assert dialog["y"] + dialog["height"] <= 700
