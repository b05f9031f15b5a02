"""Translation to English, held to its original by what must not change (report section 2.2.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from datatrove.data import Document

from nano3.config.checks import check
from nano3.curate.ask.answers import DropError
from nano3.curate.ask.step import Ask, AskSettings, AskStep
from nano3.curate.steps.language import language_of_text, outside_code
from nano3.curate.steps.llm.markers import Chunk, cut_out, fitting
from nano3.curate.steps.llm.replies import check_unchanged, gathered, is_english, without_preamble

PROMPT = "translate"
CHARACTERS_A_TOKEN = 1.0
"""Of Chinese and Japanese; of the other languages there are more."""
NAMES = {
    "zh": "Chinese", "fr": "French", "de": "German", "it": "Italian", "ja": "Japanese", "pl": "Polish",
    "pt": "Portuguese", "ru": "Russian", "es": "Spanish",
}  # fmt: skip
"""The languages of the report."""


@dataclass(frozen=True)
class TranslateSettings(AskSettings):
    """Settings of `translate`; the report publishes neither prompt nor limits: these are ours."""

    temperature: float = 0.0
    """Of sampling; 0: the likeliest token."""
    max_tokens: int = 4096
    """Tokens of an answer; one that is cut is asked for once more with twice as many."""
    chunk: int = 5_000
    """Characters of a document that the model sees at a time."""
    least: float = 0.3
    """Length, in bytes, that a translation must have of the original's."""
    most: float = 3.0
    """Length that it may have."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check("translate", self, ">=", 200, "chunk")
        check("translate", self, ">", 0, "least", "most")
        check("translate", self, "<=", self.most, "least")


class Translate(AskStep):
    """Documents in nine languages, in English. Code blocks and display equations go round the model.

    Dropped: other languages, English among them; replies that are not English, of another length, or with other
    numbers, addresses or inline code. Metadata `translated_from` names the language.
    """

    Settings = TranslateSettings
    PROMPTS: ClassVar[Mapping[str, tuple[str, ...]]] = {PROMPT: ("text", "language")}

    async def write(self, document: Document, ask: Ask) -> Sequence[Document]:
        """The translation."""
        language, _ = language_of_text(outside_code(document.text).strip())
        if language not in NAMES:
            raise DropError(f"language {language}")
        longest, _ = fitting(self.settings, self.context.server, CHARACTERS_A_TOKEN)
        chunks = cut_out(document.text, longest)
        text = "\n\n".join(await gathered([self._translated(chunk, NAMES[language], ask) for chunk in chunks])) + "\n"
        if not is_english(text) or text.split() == document.text.split():
            raise DropError("translation not English")
        return [self.child(document, text, "en", text_language="en", translated_from=language)]

    async def _translated(self, chunk: Chunk, language: str, ask: Ask) -> str:
        words = chunk.without_markers()
        if not words.strip():
            return chunk.restored(chunk.text)
        chunk.check_closed()
        _, tokens = fitting(self.settings, self.context.server, CHARACTERS_A_TOKEN)
        answer = await ask(PROMPT, {"text": chunk.text, "language": language}, max_tokens=tokens)
        # A text that begins with such a line itself has it in its translation too: "Here is the code:".
        announces = words.strip().split("\n", 1)[0].rstrip().endswith((":", "："))
        reply = without_preamble(answer.text, answer.text if announces else "")
        restored = chunk.restored(reply)
        own = chunk.without_markers(reply)
        ratio = len(own.encode()) / len(words.encode())
        if not self.settings.least <= ratio <= self.settings.most:
            raise DropError("length out of proportion")
        if not is_english(own):
            raise DropError("translation not English")
        check_unchanged(words, own)
        return restored
