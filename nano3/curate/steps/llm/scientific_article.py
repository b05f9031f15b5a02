"""Articles on scientific computing with code in them (report section 2.2.4: code-embedded articles)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from keyword import kwlist
from typing import ClassVar

from datatrove.data import Document

from nano3.config.checks import check
from nano3.curate.ask.answers import DropError
from nano3.curate.ask.step import Ask, AskSettings, AskStep
from nano3.curate.steps.languages import LANGUAGES, OTHER_NAMES
from nano3.curate.steps.llm.judge import shortened
from nano3.curate.steps.llm.markers import text_parts
from nano3.curate.steps.llm.rephrase import copied
from nano3.curate.steps.llm.replies import (
    check_whole,
    code_blocks,
    identifiers,
    is_english,
    says,
    without_preamble,
)
from nano3.curate.steps.syntax import has_syntax_error

PROMPT = "scientific-article"
NONE = "NONE"
"""What the model writes where a text has nothing to compute."""
_HEADING = re.compile(r"^#{1,4}[ \t]+\S", re.MULTILINE)
_COMMENT = re.compile(r"[ \t]*(?:#|//|/\*|\*|!|--|%|$)")
_WORD = re.compile(r"[^\W\d_]{2,}")
_DATA = ("css", "html", "json", "toml", "xml", "yaml")
"""Languages in which nothing is computed."""


@dataclass(frozen=True)
class ScientificArticleSettings(AskSettings):
    """Settings of `scientific-article`; the report publishes neither prompt nor limits: these are ours."""

    max_tokens: int = 8192
    """Tokens of an answer; one that is cut is asked for once more with twice as many."""
    sections: int = 2
    """Headings that an article must have at the least."""
    blocks: int = 2
    """Blocks of code that it must have, each with words of its own before it."""
    lines: int = 12
    """Lines of code in all of them, comments aside: fewer are trivial."""
    words: int = 150
    """Words outside code that it must have."""
    names: float = 0.3
    """Share of the names in the text's own code, of four characters and more, that the article's code must have."""
    copied: float = 0.7
    """Share of its runs of eight words, outside code, that may be the text's."""
    shown: int = 12_000
    """Characters of a text that the model sees: of a longer one the beginning and the end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check("scientific-article", self, ">=", 0, "sections", "lines", "words", "names", "copied")
        check("scientific-article", self, ">=", 1, "blocks")
        check("scientific-article", self, "<=", 1, "names", "copied")
        check("scientific-article", self, ">=", 100, "shown")


class ScientificArticle(AskStep):
    """An article from each scientific text: the method explained, with its code between the paragraphs.

    Its code is parsed, not run. Metadata `languages` has the languages of its blocks.
    """

    Settings = ScientificArticleSettings
    PROMPTS: ClassVar[Mapping[str, tuple[str, ...]]] = {PROMPT: ("text", "none")}

    async def write(self, document: Document, ask: Ask) -> Sequence[Document]:
        """The article."""
        shown = shortened(document.text, self.settings.shown)
        text = without_preamble((await ask(PROMPT, {"text": shown, "none": NONE})).text)
        if says(text, NONE):
            raise DropError("nothing to compute in it")
        languages = check_article(text, shown, self.settings)
        return [self.child(document, text + "\n", "article", languages=languages)]


def check_article(text: str, source: str, settings: ScientificArticleSettings) -> list[str]:
    """Languages of an article's code, by name.

    Args:
        text: the article.
        source: what it was written from.
        settings: what it must have.

    Raises:
        DropError: it is no English article with code in it that parses, or leaves the source's code aside.
    """
    prose, programs = _prose(text), _programs(text)
    if not is_english(text):
        raise DropError("not English")
    if len(_HEADING.findall(prose)) < settings.sections:
        raise DropError("too few sections")
    if len(_WORD.findall(prose)) < settings.words:
        raise DropError("too few words around the code")
    if len(programs) < settings.blocks or _embedded(text) < settings.blocks:
        raise DropError("too few blocks of code between the words")
    _check_programs(programs, source, settings)
    if copied(prose, _prose(source)) > settings.copied:
        raise DropError("copied from the original")
    return sorted({language for language, _ in programs})


def _check_programs(programs: Sequence[tuple[str, str]], source: str, settings: ScientificArticleSettings) -> None:
    """Raise DropError for code that is trivial, does not parse, has gaps, or has nothing of the source's own."""
    lines = [line for _, code in programs for line in code.split("\n") if not _COMMENT.match(line)]
    if len(lines) < settings.lines:
        raise DropError("trivial code")
    for language, code in programs:
        check_whole(code, source)
        if has_syntax_error(code, language):
            raise DropError("code with a syntax error")
    own = identifiers("\n".join(code for _, code in _programs(source))) - set(kwlist)
    if len(own & identifiers("\n".join(code for _, code in programs))) < settings.names * len(own):
        raise DropError("the text's own code left out")


def _programs(text: str) -> list[tuple[str, str]]:
    """(language, code) of the blocks in a programming language; others, as of output, are none."""
    named = ((_language(fence), code) for fence, code in code_blocks(text))
    return [(language, code) for language, code in named if language]


def _language(fence: str) -> str:
    """Name of the programming language behind a fence; empty: it is none."""
    name = OTHER_NAMES.get(fence.lower(), fence.lower())
    return name if name in LANGUAGES and name not in _DATA else ""


def _prose(text: str) -> str:
    """A text without its blocks of code and its display equations."""
    return "\n".join(part for part, kind, _ in text_parts(text) if not kind)


def _embedded(text: str) -> int:
    """Programs with words between them and the one before: a listing in pieces counts once."""
    found, words = 0, False
    for part, kind, fence in text_parts(text):
        if kind == "CODE" and _language(fence):
            found += words
            words = False
        elif not kind:
            words = words or any(_WORD.search(line) and not _HEADING.match(line) for line in part.split("\n"))
    return found
