"""Gate of syntax: code that a parser of its language finds errors in is dropped."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, cast

from datatrove.data import Document

from nano3.config.errors import UserError
from nano3.config.typed import nearest
from nano3.curate.step import Step
from nano3.curate.steps.languages import LANGUAGES, OTHER_NAMES, language_of


@dataclass(frozen=True)
class SyntaxSettings:
    """Settings of `syntax`."""

    languages: list[str] = field(default_factory=list)
    """Languages to keep, by their names in lower case; empty: all."""
    unknown: Literal["keep", "drop"] = "keep"
    """What becomes of documents whose language is not known."""

    def __post_init__(self) -> None:
        for name in self.languages:
            if name not in LANGUAGES:
                close = OTHER_NAMES.get(name.lower()) or nearest(name.lower(), LANGUAGES)
                hint = f"did you mean '{close}'?" if close else f"languages: {', '.join(LANGUAGES)}"
                raise UserError(f"syntax.languages: unknown language '{name}'; {hint}")


class Syntax(Step):
    """Drops code with syntax errors (tree-sitter), and writes its language into the metadata."""

    Settings = SyntaxSettings

    def check(self, document: Document) -> str:
        """Why a document is dropped; empty: it is kept."""
        language = language_of(document)
        if not language:
            return "language not known" if self.settings.unknown == "drop" else ""
        document.metadata["language"] = language
        if self.settings.languages and language not in self.settings.languages:
            return f"language {language}"
        return "syntax error" if has_syntax_error(document.text, language) else ""


def has_syntax_error(text: str, language: str) -> bool:
    """Whether tree-sitter finds an error in a text of one of `LANGUAGES`."""
    return _parser(language).parse(text.encode("utf-8", "replace")).root_node.has_error


@cache
def _parser(language: str) -> Any:
    from tree_sitter_language_pack import get_parser

    return get_parser(cast(Any, language))
