"""Wikipedia: pages that are no articles, sections that are no text, and revision by a model (report section 2.2.4)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from datatrove.data import Document

from nano3.config.checks import check
from nano3.curate.ask.answers import DropError
from nano3.curate.ask.step import Ask, AskSettings, AskStep
from nano3.curate.step import Step
from nano3.curate.steps.llm.markers import fitting, text_chunks, text_parts
from nano3.curate.steps.llm.replies import gathered, is_english, numbers, without_preamble

PROMPT = "revise-article"
REMOVED = ("References", "See also", "Notes", "External links")
"""Sections that the report takes out."""
_REDIRECT = re.compile(r"\s*#\s*redirect\b", re.IGNORECASE)
_DISAMBIGUATION = re.compile(
    # Also {{School disambiguation}} and the like; {{Disambiguation needed}} marks a link of an article.
    r"\{\{\s*(?:(?:[\w–-]+ )*disambig(?:uation)?|dab|hndis|geodis|surname|given name)\b(?!\s*needed\b)[^{}]*\}\}|"
    r"__DISAMBIG__",
    re.IGNORECASE,
)
_MAY_REFER = re.compile(r"\b(?:may|can|could|might)(?: also)? refer to\b[^.\n]{0,80}:?\s*$|"
                        r"\b(?:may|can|could|might)(?: also)? (?:refer to|stand for|mean):", re.IGNORECASE)  # fmt: skip
_TITLED = re.compile(r"^[^\n]{0,200}\(disambiguation\)\s*$", re.IGNORECASE)
_WIKI, _MARKDOWN = re.compile(r"^(={2,6})[ \t]*(.+?)[ \t]*\1[ \t]*$"), re.compile(r"^(#{1,6})[ \t]+(.+?)[ \t#]*$")
_FOOTNOTE = re.compile(
    r"<ref\b[^<>]*/>|<ref\b[^<>]*>(?:(?!<ref\b).)*?</ref>|\[(?:\d{1,3}|[a-z]{1,2}|(?:note|nb|n) \d+)\]",
    re.IGNORECASE | re.DOTALL,
)
_SENTENCE_END = tuple(".!?:;,")
_LONGEST_HEADING = 80


@dataclass(frozen=True)
class WikipediaArticleSettings:
    """Settings of `wikipedia-article`."""

    remove: list[str] = field(default_factory=lambda: list(REMOVED))
    """Headings of the sections to take out, with all below them."""


class WikipediaArticle(Step):
    """Drops disambiguation and redirect pages, and takes sections out of the others: wikitext, Markdown or plain text.

    In a text without marks a heading is a short line between empty ones, or one of the sections' names on a line.
    """

    Settings = WikipediaArticleSettings

    def check(self, document: Document) -> str:
        """Why a page is dropped; empty: it is kept."""
        title = document.metadata.get("title")
        if _REDIRECT.match(document.text) or document.metadata.get("redirect"):
            return "redirect page"
        if is_disambiguation(document.text, title if isinstance(title, str) else ""):
            return "disambiguation page"
        text, removed = without_sections(document.text, self.settings.remove)
        if not text.strip():
            return "nothing but sections that are removed"
        self.note("sections removed", removed)
        document.text = text
        return ""


def is_disambiguation(text: str, title: str = "") -> bool:
    """Whether a page only tells apart what its title may mean."""
    if title.rstrip().lower().endswith("(disambiguation)") or _DISAMBIGUATION.search(text):
        return True
    first = [line.strip() for line in text.split("\n") if line.strip()][:2]
    return any(_TITLED.match(line) for line in first[:1]) or any(_MAY_REFER.search(line) for line in first)


def without_sections(text: str, names: Sequence[str]) -> tuple[str, int]:
    """A text without the sections of some headings and all below them, and how many there were."""
    unwanted = {name.lower() for name in names}
    lines = list(_lines(text))
    outside = [line for line, in_code in lines if not in_code]
    # In wikitext a line with # before it is one of a numbered list.
    marks = next((one for one in (_WIKI, _MARKDOWN) if any(_marked(line, one) for line in outside)), None)
    kept: list[str] = []
    removed, level = 0, 0
    for i, (line, in_code) in enumerate(lines):
        heading = None if in_code else _marked(line, marks) if marks else _plain(lines, i, unwanted)
        if heading and heading[1].lower() in unwanted and (not level or heading[0] <= level):
            level, removed = heading[0], removed + 1
        elif heading and heading[0] <= level:
            level = 0
        if not level:
            kept.append(line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip("\n") + "\n", removed


def _lines(text: str) -> Iterator[tuple[str, bool]]:
    """Lines, and whether they are part of a block of code or an equation, where nothing is a heading."""
    for part, kind, _ in text_parts(text):
        yield from ((line, bool(kind)) for line in part.split("\n"))


def _marked(line: str, marks: re.Pattern[str]) -> tuple[int, str] | None:
    """Level, from 1, and text of a heading of wikitext or Markdown; None where a line is none."""
    found = marks.match(line.strip() if marks is _WIKI else line)
    return (len(found[1]), found[2].strip("'* ")) if found else None


def _plain(lines: Sequence[tuple[str, bool]], i: int, unwanted: set[str]) -> tuple[int, str] | None:
    """The same in a text without marks: a section's name, or a short line of its own without a full stop."""
    line = lines[i][0].strip()
    if line.lower() in unwanted:
        return 2, line
    alone = not any(lines[j][0].strip() for j in (i - 1, i + 1) if 0 <= j < len(lines))
    is_title = 0 < len(line) <= _LONGEST_HEADING and line[0].isupper() and not line.endswith(_SENTENCE_END)
    return (2, line) if alone and is_title else None


@dataclass(frozen=True)
class ReviseArticleSettings(AskSettings):
    """Settings of `revise-article`; the report publishes neither prompt nor limits: these are ours."""

    max_tokens: int = 4096
    """Tokens of an answer; one that is cut is asked for once more with twice as many."""
    chunk: int = 8_000
    """Characters of an article that the model sees at a time."""
    least: float = 0.5
    """Length that a revision must have of the original's, both without footnotes and their marks."""
    most: float = 1.5
    """Length that it may have."""
    numbers: float = 0.8
    """Share of the original's numbers that it must have."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check("revise-article", self, ">=", 200, "chunk")
        check("revise-article", self, ">=", 0, "least", "numbers")
        check("revise-article", self, "<=", 1, "numbers")
        check("revise-article", self, ">", 0, "most")
        check("revise-article", self, "<=", self.most, "least")


class ReviseArticle(AskStep):
    """Articles as a model revises them: clear and well formed, with the same facts."""

    Settings = ReviseArticleSettings
    PROMPTS: ClassVar[Mapping[str, tuple[str, ...]]] = {PROMPT: ("text",)}

    async def write(self, document: Document, ask: Ask) -> Sequence[Document]:
        """The revision."""
        longest, tokens = fitting(self.settings, self.context.server)
        parts = text_chunks(document.text, longest)
        answers = await gathered([ask(PROMPT, {"text": part}, max_tokens=tokens) for part in parts])
        text = (
            "\n\n".join(without_preamble(answer.text, part) for part, answer in zip(parts, answers, strict=True)) + "\n"
        )
        # Footnotes and their marks are what the revision takes out; they have more numbers than many articles.
        original, own = _FOOTNOTE.sub("", document.text), _FOOTNOTE.sub("", text)
        if not self.settings.least <= len(own) / max(1, len(original)) <= self.settings.most:
            raise DropError("length out of proportion")
        if not all(is_english(answer.text) for answer in answers):
            raise DropError("not English")
        before, after = numbers(original), numbers(own)
        if (before & after).total() < self.settings.numbers * before.total():
            raise DropError("numbers lost")
        if (after - before).total() > (1 - self.settings.numbers) * before.total() + 1:
            raise DropError("numbers added")
        return [self.child(document, text, "revised")]
