"""A prompt of the user's own over every document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from datatrove.data import Document

from nano3.curate.ask.step import Ask, AskSettings, AskStep

FIELD = "text"


@dataclass(frozen=True)
class AskOneSettings(AskSettings):
    """Settings of `ask`."""

    prompt: str = ""
    """A text file with the field {text}."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prompt:
            raise ValueError('ask.prompt is empty; name a text file with {text} in it: prompt = "mine.txt"')


class AskOne(AskStep):
    """Puts the model's answer in place of each document's text."""

    Settings = AskOneSettings

    def prompts(self) -> Mapping[str, tuple[str, ...]]:
        """The prompt, with its field."""
        return {self.settings.prompt: (FIELD,)}

    async def write(self, document: Document, ask: Ask) -> Sequence[Document]:
        """The document with the answer as its text."""
        document.text = (await ask(self.settings.prompt, {FIELD: document.text})).text
        return [document]
