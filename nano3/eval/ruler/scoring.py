"""RULER's two scores (scripts/eval of the reference)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

CONTROL = re.compile(r"[\x00-\x1f]")


def postprocess(output: str) -> str:
    """An answer as the reference scores it: control characters become line breaks, space around it is cut."""
    return CONTROL.sub("\n", output.strip()).strip()


def string_match_all(output: str, references: Sequence[str]) -> float:
    """Share of the references that occur in the answer, whatever their case."""
    return sum(_occurs(reference, output) for reference in references) / len(references)


def string_match_part(output: str, references: Sequence[str]) -> float:
    """1 when any of the references (spellings of one answer) occurs in the answer, else 0."""
    return float(any(_occurs(reference, output) for reference in references))


METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "string_match_all": string_match_all,
    "string_match_part": string_match_part,
}


def _occurs(reference: str, output: str) -> bool:
    return reference.lower() in postprocess(output).lower()
