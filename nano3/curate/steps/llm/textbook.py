"""Sections of a textbook from mathematical texts of undergraduate level and above (report section 2.2.4)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from datatrove.data import Document

from nano3.config.checks import check
from nano3.curate.ask.answers import DropError
from nano3.curate.ask.forms import json_form, one_of, sentence
from nano3.curate.ask.step import Ask, AskSettings, AskStep
from nano3.curate.steps.llm.judge import shortened
from nano3.curate.steps.llm.replies import is_english, json_object, without_preamble
from nano3.curate.steps.llm.rqa import LEVELS

LEVEL, SECTIONS = "mathematics-level", "textbook"
OTHER = "none"
"""Level of a text that is no mathematics."""
FORM_OF_LEVEL = json_form("level", {"reason": sentence(), "level": one_of((*LEVELS, OTHER))})
_HEADING = re.compile(r"^#{1,4}[ \t]+\S", re.MULTILINE)
_MARK = r"^[ \t]*(?:[-*][ \t]+)?(?:#{1,6}[ \t]+|[*_]{2})?"
_DEFINITION = re.compile(_MARK + r"Definition\b", re.MULTILINE)
_EXAMPLE = re.compile(_MARK + r"(?:Worked )?Example\b", re.MULTILINE)


@dataclass(frozen=True)
class TextbookSettings(AskSettings):
    """Settings of `textbook`; the level is the report's, the other numbers ours."""

    max_tokens: int = 8192
    """Tokens of an answer; one that is cut is asked for once more with twice as many."""
    level: str = "undergraduate"
    """Least level of education: school, undergraduate, graduate or research."""
    shown: int = 12_000
    """Characters of a text that the model sees: of a longer one the beginning and the end."""
    sections: int = 2
    """Headings that a reply must have at the least."""
    definitions: int = 1
    """Definitions that it must have."""
    examples: int = 1
    """Examples that it must have."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check("textbook", self, ">=", 0, "sections", "definitions", "examples")
        check("textbook", self, ">=", 100, "shown")
        if self.level not in LEVELS:
            raise ValueError(f"textbook.level is {self.level!r}; it must be one of {', '.join(LEVELS)}")


class Textbook(AskStep):
    """Mathematical texts of a level, written anew as sections with definitions and examples; metadata `level`."""

    Settings = TextbookSettings
    PROMPTS: ClassVar[Mapping[str, tuple[str, ...]]] = {LEVEL: ("text", "levels", "other"), SECTIONS: ("text",)}

    async def write(self, document: Document, ask: Ask) -> Sequence[Document]:
        """The sections."""
        text = shortened(document.text, self.settings.shown)
        asked = {"text": text, "levels": ", ".join(LEVELS), "other": OTHER}
        answer = await ask(LEVEL, asked, body={"temperature": 0.0} | FORM_OF_LEVEL)
        level = str(json_object(answer.text).get("level", "")).strip().lower()
        if level == OTHER:
            raise DropError("no mathematics")
        if level not in LEVELS:
            raise DropError("no level in the reply")
        if LEVELS.index(level) < LEVELS.index(self.settings.level):
            raise DropError("level too low")
        written = without_preamble((await ask(SECTIONS, {"text": text})).text)
        self._check(written)
        return [self.child(document, written + "\n", "textbook", level=level)]

    def _check(self, text: str) -> None:
        """Raise DropError where a section has not what one of a textbook has."""
        if not is_english(text):
            raise DropError("not English")
        for name, pattern in (("sections", _HEADING), ("definitions", _DEFINITION), ("examples", _EXAMPLE)):
            if len(pattern.findall(text)) < getattr(self.settings, name):
                raise DropError(f"too few {name}")
        if len(re.findall(r"(?<!\\)\$\$", text)) % 2 or text.count("\\begin{") != text.count("\\end{"):
            raise DropError("formula that does not end")
