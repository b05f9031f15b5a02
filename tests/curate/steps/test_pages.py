"""Pages with code and equations: detected, rendered, filtered by language."""

import os
import re
import shutil
import time

import pytest
from lxml import html as lxml_html

from nano3.config.errors import UserError
from nano3.curate.steps import render
from nano3.curate.steps.code_page import code_score
from nano3.curate.steps.page_parts import take_out

from ..conftest import dropped

ENGLISH = "The function returns the sum of both numbers, and it raises an error when one of them is missing. " * 3
GERMAN = "Die Funktion gibt die Summe beider Zahlen zurück und meldet einen Fehler, wenn eine davon fehlt. " * 3
CODE = [
    "def f(x):\n\tif x:\n\t\treturn  x + 1\n\n\n    # four spaces   \n",
    "x = [" + ", ".join(map(str, range(1500))) + "]",
    "a ```fence``` in it\n```\nstays\n```",
    "ünïcödé → ∀x: λ.x < y && z > 0\n",
    "$ echo \"$HOME\" | sed 's/a/b/'\n[1] link\n* star\n",
    "    leading\n  and less\n",
]
BLOCKS = "".join(
    f'<p>Text {i} here.</p><pre class="{name}"><code>{code.replace("&", "&amp;").replace("<", "&lt;")}</code></pre>'
    for i, (code, name) in enumerate(
        zip(CODE, ["language-python", "brush: js", "highlight-source-ruby", "lang-hs", "plain", ""], strict=True)
    )
)
HEAD = "<html><head><title>T</title><style>p { }</style></head><body><h1>Title</h1>"
PAGE = f"{HEAD}<p>{ENGLISH}</p>{BLOCKS}</body></html>"
DOXYGEN = """<div class="fragment"><div class="line"><a id="l1"></a><span class="lineno"> 1</span>\
<span class="keyword">template</span> &lt;<span class="keyword">class</span> T&gt;</div>
<div class="foldopen" id="f1"><div class="line"><span class="lineno"><a class="line" href="x#2"> 2</a></span>\
T&amp; f(T&amp; x) {</div>
<div class="line"><span class="lineno"> 3</span> </div>
<div class="line"><span class="lineno"> 4</span>&#160;  return\tx;  <span class="comment">// ünï</span></div>
<div class="line"><span class="lineno"> 5</span>}</div>
</div><div class="ttc" id="t1"><div class="ttname">a tooltip</div></div>
</div><!-- fragment -->"""
DOXYGEN_CODE = "template <class T>\nT& f(T& x) {\n\n  return\tx;  // ünï\n}\n"
GITHUB = """<div class="blob-wrapper"><table class="highlight js-file-line-container"><tbody>
<tr><td id="L1" class="blob-num js-line-number" data-line-number="1"></td>
  <td id="LC1" class="blob-code blob-code-inner js-file-line"><span class="pl-k">def</span> f(x):</td></tr>
<tr><td id="L2" class="blob-num js-line-number">2</td><td class="blob-code blob-code-inner js-file-line">
</td></tr>
<tr><td id="L3" class="blob-num">3</td><td class="blob-code js-file-line">    return  x &lt; 1</td></tr>
</tbody></table></div>"""
GITHUB_CODE = "def f(x):\n\n    return  x < 1\n"
NO_CODE = f"<html><body><h1>News</h1><p>{ENGLISH}</p><pre>A poem without\nany sign\nat all</pre></body></html>"

both_tools = pytest.mark.parametrize("tool", ["lynx", "resiliparse"])


def fenced_blocks(text):
    return [found[3] for found in re.finditer(r"^(`{3,})([^\n]*)\n(.*?)\n?^\1$", text, re.MULTILINE | re.DOTALL)]


def rendered(html, tool="lynx"):
    """The text that the step makes of a page, without a pipeline."""
    parts = take_out(html)
    if tool == "lynx":
        assert shutil.which("lynx"), "install Debian's package lynx"
        return parts.restored(render.lynx_text(parts.html(), 20))
    return parts.restored(render.resiliparse_text(parts.html()))


@both_tools
def test_code_comes_out_byte_for_byte(tool):
    text = rendered(PAGE, tool)
    assert [block.rstrip("\n") for block in fenced_blocks(text)] == [code.rstrip("\n") for code in CODE]
    for code in CODE:
        assert text.count(code) == 1
    for name in ("python", "js", "ruby", "hs"):
        assert len(re.findall(rf"^`{{3,}}{name}$", text, re.MULTILINE)) == 1
    assert "Title" in text
    assert "p { }" not in text
    assert not re.search(r"^ +Title", text, re.MULTILINE)
    assert text.index("Text 0") < text.index("Text 1") < text.index(CODE[1])


@both_tools
@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ('<script type="math/tex">x^2</script>', "$x^2$"),
        ('<script type="math/tex; mode=display">\\frac{a}{b}</script>', "$$\n\\frac{a}{b}\n$$"),
        ('<span class="math">\\(a_{1} &lt; b\\)</span>', "$a_{1} < b$"),
        ('<div class="math notranslate">\\[\\sum_i i\\]</div>', "$$\n\\sum_i i\n$$"),
        (
            '<span class="katex"><span class="katex-mathml"><math><semantics><mrow><mi>x</mi></mrow><annotation '
            'encoding="application/x-tex">\\alpha x</annotation></semantics></math></span><span class="katex-html">αx'
            "</span></span>",
            "$\\alpha x$",
        ),
        (
            '<math alttext="{\\displaystyle e^{i\\pi }}"><mi>e</mi></math><img class="mwe-math-fallback" alt="e">',
            "$e^{i\\pi }$",
        ),
        ('<img class="math" alt="\\int f">', "$\\int f$"),
        ('<span class="MathJax_Preview">x2</span><script type="math/tex">x_2</script>', "$x_2$"),
    ],
)
def test_equations_come_out_as_latex_once(tool, html, expected):
    text = rendered(f"<html><body><p>Let {html} be so.</p></body></html>", tool)
    assert text.count(expected) == 1
    assert re.sub(r"\s+", " ", text.replace(expected, "|")).strip() == "Let | be so."


@both_tools
def test_a_language_of_two_words_is_named_whole(tool):
    html = (
        '<p>Do:</p><div class="highlight-shell-session notranslate"><div><pre>$ <b class="k">ls</b></pre></div></div>'
    )
    assert re.findall(r"^```(.*)$", rendered(f"{HEAD}{html}</body></html>", tool), re.MULTILINE) == [
        "shell-session",
        "",
    ]


@both_tools
def test_gutters_inline_code_and_wide_divs(tool):
    html = (
        "<body><table><tr><td><pre>1\n2\n3</pre></td><td><pre>a = 1\nb = 2\n</pre></td></tr></table>"
        "<p>Call <code>f(x)</code> or <tt>a`b</tt>.</p><div style='white-space: pre'>one\n  two</div>"
        "<pre>first<br>second</pre></body>"
    )
    text = rendered(html, tool)
    assert [block.rstrip("\n") for block in fenced_blocks(text)] == ["a = 1\nb = 2", "one\n  two", "first\nsecond"]
    assert "`f(x)`" in text
    assert "``a`b``" in text


@both_tools
def test_listings_without_pre_come_out_as_their_lines(tool):
    html = f"<p>One.</p><div class='line'>{DOXYGEN}<p>Two.</p>{GITHUB}</div><p>Three.</p>"
    text = rendered(f"{HEAD}{html}</body></html>", tool)
    assert [f"{block}\n" for block in fenced_blocks(text)] == [DOXYGEN_CODE, GITHUB_CODE]
    assert "tooltip" not in text
    shown = re.findall(r"\b(?:One|Two|Three)\b|^```", text, re.MULTILINE)
    assert " ".join(shown) == "One ``` ``` Two ``` ``` Three"


@both_tools
def test_a_table_of_the_page_with_a_file_of_github_in_it_stays(tool):
    text = rendered(f"{HEAD}<table><tr><td><p>Before.</p>{GITHUB}</td></tr></table></body></html>", tool)
    assert [f"{block}\n" for block in fenced_blocks(text)] == [GITHUB_CODE]
    assert "Before." in text


def test_a_page_that_has_the_marker_of_another_in_it_is_rendered():
    other = take_out("<body><p>another</p><pre>y</pre></body>").mark + "0Z"
    text = rendered(f"<body><p>{other}</p><pre>x = 1</pre></body>", "resiliparse")
    assert other in text
    assert fenced_blocks(text) == ["x = 1"]


@both_tools
def test_a_block_inside_a_block_is_a_part_of_it(tool):
    html = "<body><p>text</p><div style='white-space: pre'><b>a\n</b><div><pre>  b</pre></div></div><p>end</p></body>"
    assert fenced_blocks(rendered(html, tool)) == ["a\n  b"]


@both_tools
def test_an_equation_inside_an_equation_is_a_part_of_it(tool):
    html = '<div class="math-wrapper"><p><span class="math">\\(x^2\\)</span></p></div><p>More.</p>'
    text = rendered(f"{HEAD}{html}</body></html>", tool)
    assert text.count("$x^2$") == 1
    assert "More." in text


def test_only_pictures_of_equations_are_equations():
    classes = {"text-center": 0, "context": 0, "tex": 1, "latex": 1, "big tex": 1}
    for name, n in classes.items():
        assert len(take_out(f'{HEAD}<img class="{name}" alt="a + b"></body></html>').texts) == n, name


def test_no_equation_takes_more_than_time_in_proportion():
    """Sixteen times the text takes about so many times as long, not its square."""
    seconds = []
    for size in (4_000, 64_000):
        page = f'{HEAD}<img class="math" alt="{{\\displaystyle{" " * size}x"></body></html>'
        started = time.process_time()
        take_out(page)
        seconds.append(time.process_time() - started)
    assert seconds[1] < 80 * max(seconds[0], 0.002)


def test_a_renderer_that_loses_a_block_is_not_believed():
    parts = take_out(PAGE)
    text = render.resiliparse_text(parts.html())
    assert parts.restored(text.replace(f"{parts.mark}2Z", "")) is None
    assert parts.restored(text + f"{parts.mark}2Z") is None


def test_pages_with_code_are_told_from_those_without():
    assert code_score(PAGE) > 0.9
    assert code_score(NO_CODE) < 0.1
    for listing in (DOXYGEN, GITHUB):
        assert code_score(f"{HEAD}{listing}</body></html>") > 0.5
    poem = '<div class="fragment"><div class="line">A poem</div>\n<div class="line">without signs</div></div>'
    assert code_score(poem) < 0.1
    assert code_score('<div class="hljs"><pre>x = f(1);</pre></div>') > 0.5


def test_lynx_is_run_from_where_it_is_installed(tmp_path, monkeypatch):
    program = tmp_path / "lynx"
    program.write_text("#!/bin/sh\necho found on the PATH\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert rendered("<p>words</p>") == "found on the PATH\n"


def test_where_lynx_is_missing_or_fails_the_report_says_what_was_used_instead(curate, monkeypatch):
    rows = [{"id": "a", "text": PAGE}, {"id": "b", "text": "<body></body>"}, {"id": "c", "text": "<!-- -->"}]
    monkeypatch.setattr(render.shutil, "which", lambda name: None)
    report, kept = curate([("render", {})], rows, out="missing")
    assert report.steps[1].account.notes["pages by resiliparse (lynx is not installed)"] == 1
    assert kept[0]["metadata"]["rendered_by"] == "resiliparse"
    monkeypatch.setattr(render.shutil, "which", lambda name: name)
    monkeypatch.setattr(render, "LYNX", ("false",))
    report, _ = curate([("render", {})], rows, out="fails")
    assert report.steps[1].account.notes["pages by resiliparse (lynx failed)"] == 1
    assert sum(dropped(report, "render").values()) == 2


def test_pages_become_text_in_a_pipeline(curate):
    rows = [
        {"id": "code", "text": PAGE},
        {"id": "news", "text": NO_CODE},
        {"id": "german", "text": PAGE.replace(ENGLISH, GERMAN)},
    ]
    report, kept = curate([("code-page", {}), ("render", {}), ("language", {})], rows)
    assert [row["id"] for row in kept] == ["code"]
    assert kept[0]["metadata"]["rendered_by"] == "lynx", "install Debian's package lynx"
    assert dropped(report, "code-page") == {"no code in the page": 1}
    assert dropped(report, "language") == {"language de": 1}


@pytest.mark.parametrize(
    ("keep", "told"), [(["en", "english"], "English is 'en'"), (["DE"], "'de'"), (["wuu"], "'zh'"), ([], "empty")]
)
def test_a_code_that_no_language_has_is_refused(curate, keep, told):
    with pytest.raises(UserError, match=f"language.keep.*{told}"):
        curate([("language", {"keep": keep})], ["x"])


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("de", GERMAN),
        ("fr", "La fonction renvoie la somme des deux nombres et signale une erreur quand l'un d'eux est absent. " * 2),
        ("es", "La función devuelve la suma de los dos números y avisa de un error cuando falta uno de ellos. " * 2),
        ("ru", "Функция возвращает сумму обоих чисел и сообщает об ошибке, если одного из них не хватает. " * 2),
        ("ja", "この関数は二つの数の合計を返します。どちらかが欠けている場合はエラーを報告します。" * 4),
        ("it", "La funzione restituisce la somma dei due numeri e segnala un errore quando uno di essi manca. " * 2),
        ("pl", "Funkcja zwraca sumę obu liczb i zgłasza błąd, jeżeli brakuje jednej z nich w wywołaniu. " * 2),
        ("pt", "A função devolve a soma dos dois números e avisa de um erro quando não há um deles. " * 2),
        ("zh", "通过“单一UNIX规范（版本2）”获取（英语文档）\n" * 4),  # py3langid calls it Wu
        ("zh", "该函数返回两个数字的总和，如果缺少其中一个，则会报告错误。请在使用之前仔细阅读说明文档。" * 4),
    ],
)
def test_languages_are_told_and_code_does_not_count(curate, language, text):
    code = "```python\nfor item in the list of all things: return nothing and everything\n```\n"
    _, kept = curate(
        [("language", {"keep": [language]})], [{"id": "a", "text": text + "\n" + code}, {"id": "b", "text": ENGLISH}]
    )
    assert [(row["id"], row["metadata"]["text_language"]) for row in kept] == [("a", language)]


def test_every_block_of_a_page_is_that_of_its_tree():
    tree = lxml_html.fromstring(PAGE)
    blocks = [element.text_content() for element in tree.iter("pre")]
    text = rendered(PAGE, "lynx")
    assert [text.count(block) for block in blocks] == [1] * len(blocks)
