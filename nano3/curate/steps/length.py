"""Filter by length."""

from __future__ import annotations

from dataclasses import dataclass

from datatrove.data import Document

from nano3.config.checks import check
from nano3.curate.step import Step


@dataclass(frozen=True)
class LengthSettings:
    """Settings of `length`."""

    least: int = 1
    """Characters that a document must have, white space at its ends aside."""
    most: int = 0
    """Characters above which it is dropped; 0: none."""

    def __post_init__(self) -> None:
        check("length", self, ">=", 0, "least", "most")
        if 0 < self.most < self.least:
            raise ValueError(
                f"length.most is {self.most}; it must be at least length.least, {self.least}, or 0 for none"
            )


class Length(Step):
    """Drops documents that are too short or too long."""

    Settings = LengthSettings

    def check(self, document: Document) -> str:
        """Why a document is dropped; empty: it is kept."""
        n = len(document.text.strip())
        if n < self.settings.least:
            return "too short"
        return "too long" if self.settings.most and n > self.settings.most else ""
