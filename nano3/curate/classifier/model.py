"""A trained classifier: fastText's file, and beside it FILE.json, which says how it was judged."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.curate.catalog import is_importable
from nano3.curate.classifier.features import features
from nano3.installation import install_command
from nano3.reading import read_json

POSITIVE, NEGATIVE = "__label__yes", "__label__no"
PACKAGE = "fasttext"


@dataclass(frozen=True)
class Classifier:
    """A model and what it looks at."""

    model: Any
    html: bool
    """It was trained on HTML of pages, not on texts."""

    def score(self, text: str) -> float:
        """Probability, from 0 to 1, that a document is like the positive examples; 0 for one without a word."""
        return score_line(self.model, features(text, self.html))


def score_line(model: Any, line: str) -> float:
    """The same of a line of features."""
    labels, probabilities = model.predict([line], k=2)
    found = dict(zip(labels[0], probabilities[0], strict=True))
    return min(1.0, float(found.get(POSITIVE, 0.0)))


def check_classifier(path: str, html: bool, wanted: str) -> str:
    """The hash of a classifier's file.

    Args:
        path: the file.
        html: the step has pages, not texts.
        wanted: the hash that it must have; empty: any.

    Raises:
        UserError: no file, not one of `nano3 data train-classifier`, of the other kind, another than wanted, or
            fastText is missing.
    """
    if not is_importable(PACKAGE):
        raise UserError(f"a classifier needs {PACKAGE}: {install_command('curate')}")
    file = Path(path).expanduser()
    if not file.is_file() or not judgement_path(file).is_file():
        raise UserError(
            f"{path}: no classifier (FILE and FILE.json): nano3 data train-classifier --out {path} writes one"
        )
    judged = read_json(judgement_path(file))
    if not isinstance(judged, dict) or "html" not in judged:
        raise UserError(f"{judgement_path(file)}: not written by nano3 data train-classifier")
    if bool(judged["html"]) != html:
        kinds = ("texts", "pages of HTML")
        raise UserError(
            f"{path} was trained on {kinds[not html]}, and this step has {kinds[html]} (--html of train-classifier)"
        )
    found = file_hash(file)
    if found != judged.get("hash"):
        raise UserError(f"{path} and {judgement_path(file).name} do not belong together: train it anew")
    if wanted and wanted != found:
        raise UserError(f"{path} has the hash {found}, not {wanted} as model_hash says")
    return found


def file_hash(file: Path) -> str:
    """A hash of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def judgement_path(file: Path) -> Path:
    """Where it says how a classifier was judged."""
    return file.with_name(file.name + ".json")


@cache
def load_classifier(path: str, wanted: str) -> Classifier:
    """The classifier of a file, once a process.

    Raises:
        UserError: the file has another hash than wanted: it was replaced after the run, or its job, was planned.
    """
    import fasttext

    file = Path(path).expanduser()
    if (found := file_hash(file)) != wanted:
        raise UserError(f"{path} was replaced: it has the hash {found}, and this run began with {wanted}")
    return Classifier(fasttext.load_model(str(file)), bool(read_json(judgement_path(file))["html"]))
