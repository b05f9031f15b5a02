"""Cleaning of rendered pages by a model that never sees their code (report section 2.2.1)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from datatrove.data import Document

from nano3.config.checks import check
from nano3.curate.ask.answers import DropError
from nano3.curate.ask.step import Ask, AskSettings, AskStep
from nano3.curate.steps.llm.markers import Chunk, cut_out, fitting, text_parts
from nano3.curate.steps.llm.replies import inline_code, says, without_preamble

PROMPT = "clean-code-page"
NOTHING = "NOTHING"
"""What the model writes where nothing of a chunk is worth keeping."""
SHORT = 200
"""Characters of a page's text below which all of it may be a menu."""
_WORD = re.compile(r"[^\W\d_]{4,}")


@dataclass(frozen=True)
class CleanCodePageSettings(AskSettings):
    """Settings of `clean-code-page`; the report publishes neither prompt nor limits: these are ours."""

    temperature: float = 0.0
    """Of sampling; 0: the likeliest token."""
    max_tokens: int = 4096
    """Tokens of an answer; one that is cut is asked for once more with twice as many."""
    chunk: int = 8_000
    """Characters of a page that the model sees at a time; fewer where its context takes fewer."""
    own_words: float = 0.9
    """Share of the words of a reply that must be the page's: cleaning adds none but those of LaTeX."""

    least: float = 0.2
    """Share of a page's text outside code and equations, in characters, that cleaning must leave."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check("clean-code-page", self, ">=", 200, "chunk")
        check("clean-code-page", self, ">=", 0, "own_words", "least")
        check("clean-code-page", self, "<=", 1, "own_words", "least")


class CleanCodePage(AskStep):
    """Takes menus, advertisements and the like out of pages. The model sees markers in place of code and equations.

    These come back byte for byte, or the page stays as it was, which the report counts; metadata `cleaned` says which.
    """

    Settings = CleanCodePageSettings
    PROMPTS: ClassVar[Mapping[str, tuple[str, ...]]] = {PROMPT: ("page", "blocks", "nothing")}

    async def write(self, document: Document, ask: Ask) -> Sequence[Document]:
        """The page, cleaned or as it was."""
        longest, _ = fitting(self.settings, self.context.server)
        chunks = cut_out(document.text, longest)
        replies = await asyncio.gather(*(self._cleaned(chunk, ask) for chunk in chunks), return_exceptions=True)
        for reply in replies:
            if isinstance(reply, BaseException) and not isinstance(reply, DropError):
                raise reply
        failures = [reply.reason for reply in replies if isinstance(reply, DropError)]
        written = [reply for reply in replies if isinstance(reply, str) and reply]
        if written and not failures and self._is_gutted(chunks, written):
            failures = ["too little text left"]
        document.metadata["cleaned"] = not failures
        if failures:
            self.note(f"pages left uncleaned: {failures[0]}")
            return [document]
        text = "\n\n".join(written)
        if not text:
            raise DropError("nothing worth keeping")
        self.note("pages cleaned")
        document.text = text + "\n"
        return [document]

    def _is_gutted(self, chunks: Sequence[Chunk], written: Sequence[str]) -> bool:
        """Whether cleaning took more out of a page's text than menus and the like can be."""
        before = sum(visible(chunk.without_markers()) for chunk in chunks)
        after = sum(visible(part) for text in written for part, kind, _ in text_parts(text) if not kind)
        return before >= SHORT and after < self.settings.least * before

    async def _cleaned(self, chunk: Chunk, ask: Ask) -> str:
        """A chunk without what is not worth keeping. Raises DropError where it must stay as it is."""
        if not chunk.without_markers().strip():
            return chunk.restored(chunk.text)
        chunk.check_closed()
        values = {"page": chunk.text, "blocks": chunk.outline() or "(none)", "nothing": NOTHING}
        _, tokens = fitting(self.settings, self.context.server)
        reply = without_preamble((await ask(PROMPT, values, max_tokens=tokens)).text, chunk.text)
        if says(reply, NOTHING) and not chunk.blocks:
            return ""
        restored = chunk.restored(reply)
        if own_words(chunk.without_markers(reply), chunk.text) < self.settings.own_words:
            raise DropError("words added")
        if not all(code in chunk.text for code in inline_code(reply)):
            raise DropError("inline code changed")
        return restored


def visible(text: str) -> int:
    """Characters of a text without its white space."""
    return sum(map(len, text.split()))


def own_words(reply: str, page: str) -> float:
    """Share of a reply's words, of four letters and more, that the page has too; LaTeX commands do not count."""
    words = _WORD.findall(re.sub(r"\\[A-Za-z]+", " ", reply).lower())
    known = set(_WORD.findall(page.lower()))
    return sum(word in known for word in words) / len(words) if words else 1.0
