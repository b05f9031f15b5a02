"""Filter by natural language; code in fences does not count."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from datatrove.data import Document

from nano3.config.checks import check
from nano3.config.errors import UserError
from nano3.curate.step import Step

_FENCE = re.compile(r"`{3,}")
_MOST = 5000
_WU = "wuu"


@dataclass(frozen=True)
class LanguageSettings:
    """Settings of `language`."""

    keep: list[str] = field(default_factory=lambda: ["en"])
    """Languages to keep, as ISO 639-1 writes them."""
    least: float = 0.5
    """Probability that the language must have."""
    shortest: int = 100
    """Characters outside code below which a document is kept without a judgement."""

    def __post_init__(self) -> None:
        check("language", self, ">=", 0, "least", "shortest")
        check("language", self, "<=", 1, "least")
        if not self.keep:
            raise UserError("language.keep is empty: nothing would be kept")
        known = set(_identifier().nb_classes) - {_WU}
        for code in self.keep:
            if code not in known:
                hint = f"did you mean '{code.lower()}'?" if code.lower() in known else "English is 'en', German 'de'"
                hint = "Wu counts as Chinese, 'zh'" if code == _WU else hint
                raise UserError(f"language.keep: no language has the code {code!r} (ISO 639-1); {hint}")


class Language(Step):
    """Keeps documents of some languages (py3langid); metadata `text_language` and `text_language_score`."""

    Settings = LanguageSettings

    def check(self, document: Document) -> str:
        """Why a document is dropped; empty: it is kept."""
        text = outside_code(document.text).strip()
        if len(text) < self.settings.shortest:
            self.note("documents with too little text to tell")
            return ""
        language, score = language_of_text(text)
        document.metadata |= {"text_language": language, "text_language_score": round(score, 3)}
        if language not in self.settings.keep:
            return f"language {language}"
        return "" if score >= self.settings.least else "language uncertain"


def language_of_text(text: str) -> tuple[str, float]:
    """ISO 639-1 code of the language at the beginning of a text, and its probability; Wu counts as Chinese (`zh`)."""
    language, score = _identifier().classify(text[:_MOST])
    if language in ("zh", _WU):  # Standard Chinese with foreign words in it is often called Wu
        scores = dict(_identifier().rank(text[:_MOST]))
        return "zh", float(scores["zh"] + scores[_WU])
    return language, float(score)


def outside_code(text: str) -> str:
    """What stands in no fence that is closed again; found in one pass, however many are not."""
    outside, inside, fence = [], [], ""
    for line in text.split("\n"):
        if not fence and (found := _FENCE.match(line)):
            fence = found[0]
            inside = [line]
        elif fence and line.rstrip(" \t\r") == fence:
            inside, fence = [], ""
        else:
            (inside if fence else outside).append(line)
    return "\n".join([*outside, *inside])


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
