"""Filter of texts by a classifier of the user's, as the report's light one of programming relevance (section 2.2.1)."""

from __future__ import annotations

from dataclasses import dataclass

from datatrove.data import Document

from nano3.config.checks import check
from nano3.config.errors import UserError
from nano3.curate.classifier.model import check_classifier, load_classifier
from nano3.curate.step import Step


@dataclass(frozen=True)
class RelevanceSettings:
    """Settings of `relevance`."""

    model: str = ""
    """File of `nano3 data train-classifier`, trained on texts."""
    threshold: float = 0.5
    """Score, from 0 to 1, that a text must have; the judgement of the classifier recommends one."""
    model_hash: str = ""
    """Of the file, which is refused where it has another; empty: whatever it has, which goes into the manifest."""

    def __post_init__(self) -> None:
        check("relevance", self, ">=", 0, "threshold")
        check("relevance", self, "<=", 1, "threshold")
        if not self.model:
            raise UserError('relevance needs a classifier: model = "FILE", of nano3 data train-classifier')
        object.__setattr__(self, "model_hash", check_classifier(self.model, False, self.model_hash))


class Relevance(Step):
    """Drops texts of a lower score, which goes into the metadata as `relevance_score`."""

    Settings = RelevanceSettings

    def check(self, document: Document) -> str:
        """Why a text is dropped; empty: it is kept."""
        score = load_classifier(self.settings.model, self.settings.model_hash).score(document.text)
        document.metadata["relevance_score"] = round(score, 4)
        return "" if score >= self.settings.threshold else "not relevant"
