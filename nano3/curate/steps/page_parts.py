"""Code and equations of a page, taken out of its HTML before it is rendered and put back into the text after."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from lxml import etree  # type: ignore[attr-defined]
from lxml import html as lxml_html

from nano3.curate.fences import fenced

_LANGUAGE = re.compile(
    r"(?:^|[\s\"'])(?:language-|lang-|highlight-source-|highlight-|source-|sourceCode\s+|brush:\s*)([\w+#]+)"
)
_NO_LANGUAGE = ("default", "notranslate", "text", "none", "plain", "plaintext", "nohighlight", "highlight")
_DISPLAYSTYLE = re.compile(r"^\{\\(?:displaystyle|textstyle)(.*)\}$", re.DOTALL)
_DELIMITED = re.compile(r"^\s*(\\\[|\\\(|\$\$|\$)(.*?)(\\\]|\\\)|\$\$|\$)\s*$", re.DOTALL)
_UNPRINTABLE = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
"""What lxml gives but does not take."""
_MATH_SCRIPT, _DROPPED = "math/tex", "dropped"
_INVISIBLE = ("script", "style", "noscript", "template", "svg", "iframe", "object", "canvas")
TEX = "contains(@encoding, 'tex') or contains(@encoding, 'TeX')"
PICTURED = "contains(@class, 'math') or contains(@class, 'latex') or contains(concat(' ', @class, ' '), ' tex ')"
WIDE = "contains(translate(@style, ' ', ''), 'white-space:pre')"


@dataclass
class Parts:
    """What was taken out of a page: a marker stands in its place."""

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

    def html(self) -> str:
        """The page to render."""
        return etree.tostring(self.tree, encoding="unicode", method="html")

    def restored(self, text: str) -> str | None:
        """The rendered text with everything back in its place; None unless each marker came out once."""
        between = re.split(rf"{self.mark}(\d+)Z", text)
        numbers, between = [int(number) for number in between[1::2]], between[::2]
        if sorted(numbers) != list(range(len(self.texts))):
            return None
        for i, number in enumerate(numbers):
            if number in self.blocks:
                between[i] = between[i].rstrip(" \t") + "\n\n"
                between[i + 1] = "\n\n" + between[i + 1].lstrip(" \t")
        between = [re.sub(r"\n{3,}", "\n\n", one) for one in between]
        between[0], between[-1] = between[0].lstrip("\n"), between[-1].rstrip("\n")
        back = "".join(self.texts[number] + after for number, after in zip(numbers, between[1:], strict=True))
        text = between[0] + back
        return text + "\n" if text else ""


def take_out(html: str) -> Parts | None:
    """The parts of a page; None where it is no HTML that can be parsed.

    Code blocks become fences with the language that their class names; equations become `$...$` or `$$...$$`, from
    MathJax's scripts, MathML's TeX annotations and alternative texts, KaTeX, and images with TeX as their text.
    """
    html = html.replace("\r\n", "\n").replace("\r", "\n")  # as browsers do before they parse
    data = html.encode("utf-8")
    try:
        tree = lxml_html.fromstring(data, parser=lxml_html.HTMLParser(encoding="utf-8", huge_tree=True))
    except (etree.ParserError, etree.XMLSyntaxError, ValueError):
        return None
    parts = Parts(tree, f"Q{hashlib.blake2b(data, digest_size=8).hexdigest()}Q")
    _drop(tree, (one for one in tree.iter(*_INVISIBLE) if not (one.get("type") or "").startswith(_MATH_SCRIPT)))
    _drop(tree, tree.xpath("//*[contains(@class, 'MathJax_Preview') or contains(@class, 'mwe-math-fallback')]"))
    _take_code(parts)
    _take_equations(parts, html)
    _drop(tree, tree.iter(*_INVISIBLE))
    _prepare_for_lynx(tree)
    for element in tree.iter("code", "tt", "kbd", "samp"):
        tick = "``" if "`" in element.text_content() else "`"
        element.text = tick + _UNPRINTABLE.sub("", element.text or "")
        element.tail = tick + _UNPRINTABLE.sub("", element.tail or "")
    return parts


def _drop(tree: Any, elements: Iterable[Any]) -> None:
    """Take elements out of a page, and all comments. lxml's drop_tree fails where it joins control characters."""
    for element in list(elements):
        if element is not tree:
            element.clear(keep_tail=True)
            element.tag = _DROPPED
    etree.strip_elements(tree, _DROPPED, etree.Comment, etree.ProcessingInstruction, with_tail=False)


def _prepare_for_lynx(tree: Any) -> None:
    """Lynx centres in its whole width, draws rules and fields of forms as long as that, and tells of redirections."""
    for element in tree.iter("h1", "h2", "h3", "center"):
        element.set("align", "left")
    for element in tree.xpath("//*[@align]"):
        element.set("align", "left")
    for element in tree.xpath("//hr"):
        _replace(element, "", "p")
    _drop(tree, tree.xpath("//input | //meta"))  # whatever encoding it names: what is rendered is UTF-8


def _take_code(parts: Parts) -> None:
    places = f"//pre | //textarea | //div[{WIDE}] | //listing | //xmp"
    found = parts.tree.xpath(places)
    blocks = set(found)
    for element in [one for one in found if blocks.isdisjoint(one.iterancestors())]:
        for line_break in list(element.iter("br")):
            line_break.text = "\n"
        text = element.text_content().removeprefix("\n")  # as browsers do
        if not re.sub(r"[\d\s]", "", text):
            parts.notes["gutters of line numbers and empty blocks left out"] += 1
            _replace(element, "", "span")
            continue
        parts.notes["code blocks"] += 1
        _replace(element, parts.add(fenced(text, _language(element)), True), "p")


def _language(element: Any) -> str:
    """The language that the class of a block, of what is in it, or of what it is in names."""
    near = [element, *element.iterdescendants(), *list(element.iterancestors())[:2]]
    for one in near:
        for key in ("class", "data-lang", "data-language"):
            value = one.get(key) or ""
            value = f"language-{value}" if key != "class" and value else value
            found = next((name for name in _LANGUAGE.findall(value) if name.lower() not in _NO_LANGUAGE), "")
            if found:
                return found.lower()
    return ""


def _take_equations(parts: Parts, html: str) -> None:
    """Only what the page's text has a word of is looked for: most pages have no equations."""
    if "math" in html:
        _take_math_scripts(parts)
    if "katex" in html:
        _take_katex(parts)
    if "math" in html.lower():
        _take_mathml(parts)
    for element in parts.tree.xpath(f"//img[@alt][{PICTURED}]"):
        _take_equation(parts, element, element.get("alt"), "display" in (element.get("class") or ""))
    if "math" in html:
        _take_delimited(parts)


def _take_math_scripts(parts: Parts) -> None:
    for element in parts.tree.xpath(f"//script[starts-with(@type, '{_MATH_SCRIPT}')]"):
        _take_equation(parts, element, element.text or "", "display" in element.get("type"))


def _take_katex(parts: Parts) -> None:
    for element in parts.tree.xpath("//*[contains(concat(' ', @class, ' '), ' katex ')]"):
        source = element.xpath(".//*[local-name()='annotation']/text()")
        if source:
            display = any("katex-display" in (above.get("class") or "") for above in element.iterancestors())
            _take_equation(parts, element, source[0], display)


def _take_mathml(parts: Parts) -> None:
    for element in parts.tree.xpath("//*[local-name()='math']"):
        source = element.xpath(f".//*[local-name()='annotation'][{TEX}]/text()")
        tex = source[0] if source else element.get("alttext") or ""
        if tex.strip():
            _take_equation(parts, element, tex, element.get("display") == "block")
        else:
            parts.notes["formulas without TeX, left as their text"] += 1


def _take_delimited(parts: Parts) -> None:
    for element in parts.tree.xpath("//*[self::div or self::span][contains(@class, 'math')]"):
        found = _DELIMITED.match(element.text_content())
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
