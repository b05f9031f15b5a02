"""Web texts written anew in five ways (report section 2.2.3; the five kinds of Nemotron-CC, arXiv 2412.02595)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from datatrove.data import Document

from nano3.config.checks import check
from nano3.curate.ask.answers import DropError
from nano3.curate.ask.step import Ask, AskSettings, AskStep
from nano3.curate.steps.llm.markers import fitting, text_chunks
from nano3.curate.steps.llm.replies import gathered, is_english, turns, without_preamble

Style = Literal["diverse-qa", "distill", "extract-knowledge", "knowledge-list", "wikipedia"]
STYLES: tuple[Style, ...] = ("diverse-qa", "distill", "extract-knowledge", "knowledge-list", "wikipedia")
_ITEM = re.compile(r"^[ \t]*(?:[-*•]|\d+[.)])[ \t]+\S")
_WORD = re.compile(r"\w+")
RUN = 8
"""Words of a run that counts as copied."""


@dataclass(frozen=True)
class RephraseSettings(AskSettings):
    """Settings of `rephrase`; the report publishes neither prompts nor limits: these are ours."""

    max_tokens: int = 4096
    """Tokens of an answer; one that is cut is asked for once more with twice as many."""
    styles: list[Style] = field(default_factory=lambda: list(STYLES))
    """What is written of each document, a text each."""
    chunk: int = 8_000
    """Characters of a document that the model sees at a time; longer ones in pieces that end between paragraphs."""
    least: float = 0.02
    """Length that a text must have of the original's."""
    most: float = 2.0
    """Length that it may have, but for questions and answers."""
    copied: float = 0.7
    """Share of its runs of eight words that may be the original's, but for questions and answers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check("rephrase", self, ">=", 200, "chunk")
        check("rephrase", self, ">=", 0, "least", "copied")
        check("rephrase", self, ">", 0, "most")
        check("rephrase", self, "<=", self.most, "least")
        if not self.styles:
            raise ValueError("rephrase.styles is empty: nothing would be written")
        if len(set(self.styles)) < len(self.styles):
            raise ValueError("rephrase.styles names one twice: its texts would be duplicates")


class Rephrase(AskStep):
    """Each document written anew in each style. A style that fails is counted; where all fail, the document is dropped.

    `diverse-qa` keeps the document and puts the questions and answers below it, as Nemotron-CC does.
    """

    Settings = RephraseSettings

    def prompts(self) -> Mapping[str, tuple[str, ...]]:
        """One for each style."""
        return {f"rephrase-{style}": ("text",) for style in self.settings.styles}

    async def write(self, document: Document, ask: Ask) -> Sequence[Document]:
        """The texts, in the order of the styles."""
        found = await asyncio.gather(
            *(self._rephrased(document.text, style, ask) for style in self.settings.styles), return_exceptions=True
        )
        written = []
        for style, text in zip(self.settings.styles, found, strict=True):
            if isinstance(text, str):
                written.append(self.child(document, text, style, style=style))
            elif isinstance(text, DropError):
                self.note(f"{style} not kept: {text.reason}")
            else:
                raise text
        if not written:
            raise DropError("no style kept")
        return written

    async def _rephrased(self, text: str, style: Style, ask: Ask) -> str:
        """The whole of a document in one style. Raises DropError where a part of it is not fit."""
        longest, tokens = fitting(self.settings, self.context.server)
        parts = text_chunks(text, longest)
        asked = (ask(f"rephrase-{style}", {"text": part}, max_tokens=tokens) for part in parts)
        replies = await gathered(asked)
        written = [without_preamble(reply.text, part) for part, reply in zip(parts, replies, strict=True)]
        if not all(map(is_english, written)):
            raise DropError("not English")
        # Of the whole: the last piece of a document may be a line. Of a short text there are many questions.
        length = sum(map(len, written)) / sum(map(len, parts))
        if length < self.settings.least or (length > self.settings.most and style != "diverse-qa"):
            raise DropError("length")
        return "\n\n".join(self._fit(part, one, style) for part, one in zip(parts, written, strict=True)) + "\n"

    def _fit(self, source: str, text: str, style: Style) -> str:
        """What is kept of a reply. Raises DropError where it is not fit."""
        if style == "diverse-qa":
            pairs = turns(text, ("Question", "Answer"))
            if [name for name, _ in pairs] != ["Question", "Answer"] * (len(pairs) // 2):
                raise DropError("no pairs of question and answer")
            return "\n\n".join([source.strip(), *(f"{name}: {said}" for name, said in pairs)])
        rows = [row for row in text.split("\n") if row[:1].strip()]
        if style == "knowledge-list" and not all(map(_ITEM.match, rows)):
            raise DropError("no list")
        if copied(text, source) > self.settings.copied:
            raise DropError("copied from the original")
        return text


def copied(text: str, source: str) -> float:
    """Share of the runs of eight words of a text that occur in its source too; 0 for shorter ones."""
    runs, own = (_runs(_WORD.findall(one.lower())) for one in (text, source))
    return sum(run in own for run in runs) / len(runs) if runs else 0.0


def _runs(words: Sequence[str]) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1)}
