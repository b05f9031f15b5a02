"""Code and equations of a page, taken out of its HTML before it is rendered and put back into the text after."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from lxml import etree  # type: ignore[attr-defined]
from lxml import html as lxml_html

from nano3.curate.fences import fenced

_LANGUAGE = re.compile(
    r"(?:^|[\s\"'])(?:language-|lang-|highlight-source-|highlight-|source-|sourceCode\s+|brush:\s*)([\w+#](?:[\w+#-]*[\w+#])?)"
)
_NO_LANGUAGE = ("default", "notranslate", "text", "none", "plain", "plaintext", "nohighlight", "highlight")
_DISPLAYSTYLE = re.compile(r"^\{\\(?:displaystyle|textstyle)(.*)\}$", re.DOTALL)
_DELIMITED = re.compile(r"^\s*(\\\[|\\\(|\$\$|\$)(.*?)(\\\]|\\\)|\$\$|\$)\s*$", re.DOTALL)
_UNPRINTABLE = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
"""What lxml gives but does not take."""
_NUMBER = re.compile(r"(\d+)Z")
_GAP = re.compile(r"\n{3,}")
_WORDED = re.compile(r"[^\d\s]")
_FULL = re.compile(rb"\s*<(?:html|!doctype)", re.IGNORECASE)
_PARSER = etree.HTMLParser(encoding="utf-8", huge_tree=True, remove_comments=True, remove_pis=True, collect_ids=False)
_ALIGN = re.compile(r"align\s*=")
_MATH_SCRIPT, _DROPPED = "math/tex", "dropped"
_INVISIBLE = ("script", "style", "noscript", "template", "svg", "iframe", "object", "canvas")
_BLOCKS = ("pre", "textarea", "listing", "xmp")
_UNUSED = ("class", "id", "style", "href", "title")
"""Attributes that resiliparse does not look at. Lynx lays out a `div` with any attribute as a paragraph."""


def _paths(condition: str) -> etree.XPath:
    """What finds the elements that meet a condition, in order. `//` would make a list of all elements first."""
    return etree.XPath(f"descendant-or-self::{condition}", smart_strings=False)


def _attribute(name: str, word: str) -> re.Pattern[str]:
    """A word in an attribute, as HTML in lower case writes it: faster to find than in a tree."""
    value = rf"""(?:"[^"]*{word}|'[^']*{word}|[^\s"'<>=]*{word})"""
    return re.compile(rf"{name}\s*=\s*{value}")


_STYLED_WIDE, _CLASSED_MATH = _attribute("style", "white"), _attribute("class", "math")
_TEXT = etree.XPath("string()", smart_strings=False)
_BLOCKS_AND_WIDE = _paths(
    "*[self::pre or self::textarea or self::listing or self::xmp or "
    "self::div[contains(translate(@style, ' ', ''), 'white-space:pre')]]"
)


def _has(word: str) -> str:
    """The condition that an element has a class."""
    return f"contains(concat(' ', normalize-space(@class), ' '), ' {word} ')"


_DOXYGEN, _GITHUB = "fragment", "js-file-line"
_LISTINGS = _paths(
    f"*[self::div[{_has(_DOXYGEN)}][div[{_has('line')} or {_has('foldopen')}]] or "
    f"self::table[(. | tbody)/tr/td[{_has(_GITHUB)}]]]"
)
"""Listings without `pre`: Doxygen's, a `div` for each line, and GitHub's files, a row of a table."""
_LINES = _paths(f"*[self::div[{_has('line')}] or self::td[{_has(_GITHUB)}]]")
_LINE_NUMBERS = _paths(f"span[{_has('lineno')}]")
_NAMED = _paths(
    "*[@data-lang or @data-language or contains(@class, '-') or contains(@class, 'sourceCode') or "
    "contains(@class, 'brush:')]"
)
_ALIGNED = _paths("*[@align]")
_REPEATED = _paths("*[contains(@class, 'MathJax_Preview') or contains(@class, 'mwe-math-fallback')]")
_KATEX = _paths("*[contains(concat(' ', @class, ' '), ' katex ')]")
_MATH = _paths("*[contains(@class, 'math')][self::div or self::span]")
_SOURCE = _paths("annotation/text()")
_TEX_SOURCE = _paths("annotation[contains(@encoding, 'tex') or contains(@encoding, 'TeX')]/text()")


@dataclass
class Parts:
    """What was taken out of a page: a marker stands in its place."""

    lower: str
    """The page as it was, in lower case: what it has no word of is not looked for in the tree, which takes longer."""
    tree: Any
    """The page with markers, an lxml element."""
    mark: str
    """What every marker begins with: made of the page's hash, so that the page cannot hold it."""
    texts: list[str] = field(default_factory=list)
    """What each marker stands for, in order of number."""
    blocks: set[int] = field(default_factory=set)
    """Numbers of those that stand on lines of their own."""
    notes: Counter[str] = field(default_factory=Counter)

    def add(self, text: str, block: bool) -> str:
        """The marker for a text."""
        if block:
            self.blocks.add(len(self.texts))
        self.texts.append(text)
        return f"{self.mark}{len(self.texts) - 1}Z"

    def html(self, for_lynx: bool = True) -> str:
        """The page to render, by Lynx or by resiliparse."""
        if for_lynx:
            _align_left(self.tree, self.lower)
        else:
            etree.strip_attributes(self.tree, *_UNUSED)
        return etree.tostring(self.tree, encoding="unicode", method="html")

    def restored(self, text: str) -> str | None:
        """The rendered text with everything back in its place; None unless each marker came out once."""
        numbers, between = self._split(text)
        if sorted(numbers) != list(range(len(self.texts))):
            return None
        for i, number in enumerate(numbers):
            if number in self.blocks:
                between[i] = between[i].rstrip(" \t") + "\n\n"
                between[i + 1] = "\n\n" + between[i + 1].lstrip(" \t")
        between = [_GAP.sub("\n\n", one) if "\n\n\n" in one else one for one in between]
        between[0], between[-1] = between[0].lstrip("\n"), between[-1].rstrip("\n")
        back = "".join(self.texts[number] + after for number, after in zip(numbers, between[1:], strict=True))
        text = between[0] + back
        return text + "\n" if text else ""

    def _split(self, text: str) -> tuple[list[int], list[str]]:
        """The markers' numbers, and what stands before, between and behind them. A pattern would be compiled anew
        for every page."""
        first, *others = text.split(self.mark)
        numbers, between = [], [first]
        for one in others:
            found = _NUMBER.match(one)
            if found:
                numbers.append(int(found[1]))
                between.append(one[found.end() :])
            else:
                between[-1] += self.mark + one
        return numbers, between


def take_out(html: str) -> Parts | None:
    """The parts of a page; None where it is no HTML that can be parsed.

    Code blocks become fences with the language that their class names; equations become `$...$` or `$$...$$`, from
    MathJax's scripts, MathML's TeX annotations and alternative texts, KaTeX, and images with TeX as their text.
    """
    html = html.replace("\r\n", "\n").replace("\r", "\n")  # as browsers do before they parse
    data = html.encode("utf-8")
    tree = _parsed(data)
    if tree is None:
        return None
    parts = Parts(html.lower(), tree, f"Q{hashlib.blake2b(data, digest_size=8).hexdigest()}Q")
    equations = _drop_unseen(tree, html)
    _take_code(parts)
    _take_equations(parts, equations)
    _drop(tree, (script for script in equations if script.tag == "script"))
    for element in list(tree.iter("hr")) if "<hr" in parts.lower else ():  # Lynx draws it as long as its whole width
        _replace(element, "", "p")
    _tick_inline_code(tree, html)
    return parts


def _parsed(data: bytes) -> Any:
    """The tree of a page, without comments; None: there is none."""
    try:
        if _FULL.match(data):  # the usual case; plain elements are made in half the time of lxml.html's
            return etree.fromstring(data, _PARSER)
        tree = lxml_html.fromstring(data, parser=lxml_html.HTMLParser(encoding="utf-8", huge_tree=True))
    except (etree.ParserError, etree.XMLSyntaxError, ValueError):
        return None
    etree.strip_elements(tree, etree.Comment, etree.ProcessingInstruction, with_tail=False)
    return tree


def _drop_unseen(tree: Any, html: str) -> list[Any]:
    """Take out what is not shown, fields of forms, and encodings: what is rendered is UTF-8. MathJax's scripts stay."""
    equations, unseen = [], []
    for element in tree.iter(*_INVISIBLE, "input", "meta"):
        is_equation = element.tag == "script" and (element.get("type") or "").startswith(_MATH_SCRIPT)
        (equations if is_equation else unseen).append(element)
    if "MathJax_Preview" in html or "mwe-math-fallback" in html:
        unseen += _REPEATED(tree)
    _drop(tree, unseen)
    return equations


def _drop(tree: Any, elements: Iterable[Any]) -> None:
    """Take elements out of a page. lxml's drop_tree fails where it joins control characters."""
    found = [element for element in elements if element is not tree]
    for element in found:
        element.clear(keep_tail=True)
        element.tag = _DROPPED
    if found:
        etree.strip_elements(tree, _DROPPED, with_tail=False)


def _align_left(tree: Any, html: str) -> None:
    """Lynx centres in its whole width."""
    for element in _ALIGNED(tree) if _ALIGN.search(html) else ():
        element.set("align", "left")
    for element in tree.iter("h1", "h2", "h3", "center"):
        element.set("align", "left")


def _tick_inline_code(tree: Any, html: str) -> None:
    """Backticks around code inside sentences."""
    ticked = "`" in html or "&#" in html
    for element in tree.iter("code", "tt", "kbd", "samp"):
        tick = "``" if ticked and "`" in _TEXT(element) else "`"
        element.text = tick + _UNPRINTABLE.sub("", element.text or "")
        element.tail = tick + _UNPRINTABLE.sub("", element.tail or "")


def _take_code(parts: Parts) -> None:
    tree = parts.tree
    found = _BLOCKS_AND_WIDE(tree) if _STYLED_WIDE.search(parts.lower) else list(tree.iter(*_BLOCKS))
    listings = _LISTINGS(tree) if _DOXYGEN in parts.lower or _GITHUB in parts.lower else []
    is_listing = dict.fromkeys(found, False) | dict.fromkeys(listings, True)
    outer = [one for one in is_listing if is_listing.keys().isdisjoint(one.iterancestors(*_BLOCKS, "div", "table"))]
    for element in outer:
        for line_break in list(element.iter("br")):
            line_break.text = "\n"
        text = _listing(element) if is_listing[element] else _TEXT(element).removeprefix("\n")  # as browsers do
        if not _WORDED.search(text):
            parts.notes["gutters of line numbers and empty blocks left out"] += 1
            _replace(element, "", "span")
            continue
        parts.notes["code blocks"] += 1
        _replace(element, parts.add(fenced(text, _language(element)), True), "p")


def _listing(element: Any) -> str:
    """The lines of a listing that has an element for each. What shows when the pointer is over a name is left out."""
    found, lines = set(_LINES(element)), []
    for line in [one for one in _LINES(element) if found.isdisjoint(one.iterancestors("div", "td"))]:
        for number in _LINE_NUMBERS(line):
            number.clear(keep_tail=True)
            number.tail = (number.tail or "").removeprefix(
                "\xa0"
            )  # that stands between number and line in some versions
        text = _TEXT(line).strip("\n")
        lines.append(text if text.strip() else "")  # Doxygen and GitHub put a space or a newline into an empty line
    return "\n".join(lines) + "\n"


def _language(element: Any) -> str:
    """The language that the class of a block, of what is in it, or of what it is in names."""
    for one in [*_NAMED(element), *islice(element.iterancestors(), 2)]:
        for key in ("class", "data-lang", "data-language"):
            value = one.get(key) or ""
            value = f"language-{value}" if key != "class" and value else value
            found = next((name for name in _LANGUAGE.findall(value) if name.lower() not in _NO_LANGUAGE), "")
            if found:
                return found.lower()
    return ""


def _take_equations(parts: Parts, scripts: Iterable[Any]) -> None:
    for element in scripts:
        _take_equation(parts, element, element.text or "", "display" in element.get("type"))
    if "katex" in parts.lower:
        _take_katex(parts)
    if "<math" in parts.lower:
        _take_mathml(parts)
    if "<img" in parts.lower:
        _take_pictured(parts)
    if _CLASSED_MATH.search(parts.lower):
        _take_delimited(parts)


def _take_katex(parts: Parts) -> None:
    for element in _KATEX(parts.tree):
        source = _SOURCE(element)
        if source:
            display = any("katex-display" in (above.get("class") or "") for above in element.iterancestors())
            _take_equation(parts, element, source[0], display)


def _take_mathml(parts: Parts) -> None:
    for element in list(parts.tree.iter("math")):
        source = _TEX_SOURCE(element)
        tex = source[0] if source else element.get("alttext") or ""
        if tex.strip():
            _take_equation(parts, element, tex, element.get("display") == "block")
        else:
            parts.notes["formulas without TeX, left as their text"] += 1


def _take_pictured(parts: Parts) -> None:
    for element in list(parts.tree.iter("img")):
        tex, name = element.get("alt"), element.get("class") or ""
        if tex and ("math" in name or "latex" in name or "tex" in name.split()):
            _take_equation(parts, element, tex, "display" in name)


def _take_delimited(parts: Parts) -> None:
    for element in _MATH(parts.tree):
        found = _DELIMITED.match(_TEXT(element))
        if found and parts.mark not in found[2]:
            _take_equation(parts, element, found[2], found[1] in ("\\[", "$$"))


def _take_equation(parts: Parts, element: Any, tex: str, display: bool) -> None:
    tex = tex.strip()
    delimited, styled = _DELIMITED.match(tex), _DISPLAYSTYLE.match(tex)
    tex = (delimited[2] if delimited else styled[1] if styled else tex).strip()
    if not tex or parts.tree not in element.iterancestors():  # it went with one around it
        return
    parts.notes["equations"] += 1
    marker = parts.add(f"$$\n{tex}\n$$" if display else f"${' '.join(tex.split())}$", display)
    _replace(element, marker, "p" if display else "span")


def _replace(element: Any, text: str, tag: str) -> None:
    """Make an element one that holds a text alone."""
    element.clear(keep_tail=True)
    element.tag, element.text = tag, text
