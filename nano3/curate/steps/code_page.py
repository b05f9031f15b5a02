"""Fast detector of pages with code, on their HTML (report section 2.2.1): by a rule or a classifier of the user's."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from datatrove.data import Document

from nano3.config.checks import check
from nano3.curate.classifier.model import check_classifier, load_classifier
from nano3.curate.step import Step

_BLOCK = re.compile(r"<(/?)(pre|textarea)\b[^<>]*>", re.IGNORECASE)
_CLASS = re.compile(
    r"""(?:class|data-lang)\s*=\s*["'][^"']*\b(?:hljs|highlight|prettyprint|codehilite|sourceCode|CodeMirror|syntaxhighlighter"""
    r"""|language-[\w+#]+|lang-[\w+#]+|brush:\s*\w+|code-block|codeblock)\b""",
    re.IGNORECASE,
)
_DOXYGEN = '<div class="fragment">'
_DOXYGEN_LINE = re.compile(r"""\s*<div class="(?:line|foldopen)\b""")
_LINE_NUMBER = re.compile(r"""<span class="lineno">[^<>]*(?:<[^<>]*>[^<>]*</a>)?</span>""")
_GITHUB = "js-file-line"
_CELL = re.compile(r"<td\b([^<>]*)>")
_INLINE = re.compile(r"<(?:code|tt|kbd|samp|var)\b", re.IGNORECASE)
_TAG = re.compile(r"<[^<>]*>")
_SIGNS = re.compile(
    r"[{}();=<>\[\]]|&lt;|&gt;|->|::|^[ \t]*(?:#|//|\$ |>>> |def |import |return |if |for )", re.MULTILINE
)
BLOCK, CLASS, INLINE = 1.0, 0.5, 0.1
MOST_CLASSES, MOST_INLINE = 4, 10


@dataclass(frozen=True)
class CodePageSettings:
    """Settings of `code-page`. The report publishes no rule: this one is ours."""

    threshold: float = 0.5
    """Score, from 0 to 1, that a page must have. One block of code and a class of a highlighter give 0.53."""
    model: str = ""
    """File of `nano3 data train-classifier --html`, which then gives the score in place of the rule."""
    model_hash: str = ""
    """Of that file, which is refused where it has another; empty: whatever it has, which goes into the manifest."""

    def __post_init__(self) -> None:
        check("code-page", self, ">=", 0, "threshold")
        check("code-page", self, "<=", 1, "threshold")
        if self.model:
            object.__setattr__(self, "model_hash", check_classifier(self.model, True, self.model_hash))


class CodePage(Step):
    """Drops pages without evidence of code; the score goes into the metadata as `code_page_score`."""

    Settings = CodePageSettings

    def check(self, document: Document) -> str:
        """Why a page is dropped; empty: it is kept."""
        model, wanted = self.settings.model, self.settings.model_hash
        score = load_classifier(model, wanted).score(document.text) if model else code_score(document.text)
        document.metadata["code_page_score"] = round(score, 3)
        return "" if score >= self.settings.threshold else "no code in the page"


def code_score(html: str) -> float:
    """How much code a page seems to have, from 0 to 1: blocks with the signs of code, classes that highlighters write,
    and code inside sentences."""
    listings = sum(_is_code(_TAG.sub("", block)) for block in _listings(html))
    blocks = sum(_is_code(_TAG.sub("", block)) for block in _blocks(html)) + listings
    classes = min(MOST_CLASSES, len(_CLASS.findall(html)) + listings)
    inline = min(MOST_INLINE, len(_INLINE.findall(html)))
    return 1 - math.exp(-(BLOCK * blocks + CLASS * classes + INLINE * inline) / 2)


def _blocks(html: str) -> Iterator[str]:
    """What stands between the tags of each block, in one pass over the page, however many are left open."""
    opened: dict[str, int] = {}
    for tag in _BLOCK.finditer(html):
        name = tag[2].lower()
        if not tag[1]:
            opened.setdefault(name, tag.end())
        elif name in opened:
            yield html[opened.pop(name) : tag.start()]


def _listings(html: str) -> Iterator[str]:
    """Listings without `pre`: each of Doxygen's, and the lines of a file on GitHub."""
    for after in html.split(_DOXYGEN)[1:]:
        if _DOXYGEN_LINE.match(after):
            yield _LINE_NUMBER.sub("", after.partition("<!-- fragment -->")[0])
    if _GITHUB in html:
        cells = iter(_CELL.split(html)[1:])
        pairs = zip(cells, cells, strict=True)  # attributes, and what follows
        yield "\n".join(after.partition("</td>")[0] for attributes, after in pairs if _GITHUB in attributes)


def _is_code(text: str) -> bool:
    """Whether a block has a sign of code on every second line or so."""
    lines = [line for line in text.splitlines() if line.strip()]
    return bool(lines) and len(_SIGNS.findall(text)) >= 0.5 * len(lines)
