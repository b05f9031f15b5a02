"""Training of a classifier from examples, judged on hosts or folders that training has not seen."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nano3.config.errors import UserError
from nano3.curate.classifier.examples import Example, Split, read_examples, split_examples
from nano3.curate.classifier.judgement import (
    THRESHOLDS,
    average_precision,
    curve,
    draw_curve,
    groups,
    point,
    recommended,
)
from nano3.curate.classifier.model import NEGATIVE, POSITIVE, file_hash, judgement_path, score_line
from nano3.files import write_atomic

SETTINGS = {
    "lr": 0.5, "wordNgrams": 2, "dim": 16, "bucket": 200_000, "minCount": 2, "loss": "softmax",
    "thread": 1, "seed": 1, "verbose": 0,
}  # fmt: skip
"""fastText's. With several threads two runs would differ; 16 numbers a word keep the file at some 15 MB."""
LEAST_EPOCHS, MOST_EPOCHS, SEEN = 5, 100, 20_000
"""Of training; between the bounds as many as show it so many documents."""
RULE_THRESHOLD = 0.5
MOST_POINTS = 500
"""Of the curve in the JSON file and the chart."""


@dataclass(frozen=True)
class TrainingOptions:
    """What to train of what."""

    positive: Sequence[str]
    negative: Sequence[str]
    html: bool = False
    heldout: float = 0.25
    """Share of the documents of each kind, in whole groups, to judge by."""
    recall: float = 0.95
    """Share of the positive documents that the recommended threshold keeps."""
    seed: int = 0


def train_classifier(options: TrainingOptions, out: Path) -> dict[str, Any]:
    """Train, judge and write a classifier: `out`, `out`.json and `out`.png; what the JSON file says.

    The classifier that is written is the one that was judged: it has not seen the held-out documents.

    Raises:
        UserError, FileNotFoundError: nothing to read, no document of a kind that is not of the other too, or too
            little of a kind to train with and to judge by.
    """
    left_out: list[str] = []
    examples = [
        *read_examples(options.positive, True, options.html, left_out),
        *read_examples(options.negative, False, options.html, left_out),
    ]
    in_both = _check_kinds(examples)
    split = split_examples(examples, options.heldout, options.seed)
    _check(split)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        model = _train(split.training, Path(folder, "lines.txt"))
        temporary = Path(folder, "model")
        model.save_model(str(temporary))
        found = _judged(model, split, options) | {
            "hash": file_hash(temporary),
            "left_out": left_out,
            "in_both": in_both,
        }
        judgement_path(out).unlink(missing_ok=True)  # without it FILE is no classifier: the three come together
        os.replace(temporary, out)
    _draw(found, split, out.with_name(out.name + ".png"))
    write_atomic(judgement_path(out), json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return found


def _check_kinds(examples: Sequence[Example]) -> int:
    """How many different documents are examples of both kinds. Raises UserError where a kind has no others."""
    positive, negative = ({example.line for example in examples if example.positive == kind} for kind in (True, False))
    in_both = positive & negative
    if len(in_both) == min(len(positive), len(negative)):
        one, other = ("--positive", "--negative") if len(in_both) == len(positive) else ("--negative", "--positive")
        raise UserError(f"every document of {one} is in {other} too ({len(in_both):,}): give documents of two kinds")
    return len(in_both)


def _check(split: Split) -> None:
    for what, examples in (("train with", split.training), ("judge by", split.heldout)):
        for kind in (True, False):
            if not any(example.positive == kind for example in examples):
                raise UserError(f"too few {'--positive' if kind else '--negative'} documents: none is left to {what}")


def _train(examples: Sequence[Example], file: Path) -> Any:
    import fasttext

    labels = {True: POSITIVE, False: NEGATIVE}
    lines = (f"{labels[example.positive]} {example.line}\n" for example in examples)
    file.write_text("".join(lines), "utf-8", errors="replace")
    try:
        return fasttext.train_supervised(str(file), epoch=_epochs(len(examples)), **SETTINGS)
    except ValueError as error:
        raise UserError(f"fastText cannot train with these documents: {error}") from error


def _epochs(documents: int) -> int:
    return min(MOST_EPOCHS, max(LEAST_EPOCHS, SEEN // documents))


def _judged(model: Any, split: Split, options: TrainingOptions) -> dict[str, Any]:
    scores, positive = _scores(model, split.heldout), _kinds(split.heldout)
    points = curve(scores, positive)
    settings = SETTINGS | {"epoch": _epochs(len(split.training))}
    best, shown = recommended(points, options.recall), points[:: -(-len(points) // MOST_POINTS)]
    counted = {
        name: {"positive": int(_kinds(own).sum()), "negative": int((~_kinds(own)).sum()),
               "groups": sorted({example.group for example in own})}
        for name, own in (("training", split.training), ("heldout", split.heldout))
    }  # fmt: skip
    rule = point(np.array([example.rule for example in split.heldout]), positive, RULE_THRESHOLD)
    return {
        "html": options.html, "seed": options.seed, "settings": settings, "examples": counted,
        "split_by_group": split.by_group, "heldout_repeated": split.repeated,
        "average_precision": average_precision(points), "wanted_recall": options.recall, "recommended": asdict(best),
        "rule": asdict(rule) if options.html else None,
        "table": [asdict(point(scores, positive, threshold)) for threshold in THRESHOLDS],
        "groups": groups(split.heldout, scores, best.threshold), "curve": [asdict(one) for one in shown],
    }  # fmt: skip


def _scores(model: Any, examples: Sequence[Example]) -> np.ndarray:
    return np.array([score_line(model, example.line) for example in examples])


def _kinds(examples: Sequence[Example]) -> np.ndarray:
    return np.array([example.positive for example in examples], bool)


def _draw(found: dict[str, Any], split: Split, path: Path) -> None:
    from nano3.curate.classifier.judgement import Point

    n = found["examples"]["heldout"]
    drawn = (
        "hosts and folders that training has not seen"
        if split.by_group
        else "documents of hosts that training has seen"
    )
    note = f"{n['positive']:,} positive and {n['negative']:,} negative documents, {drawn}"
    points = [Point(**one) for one in found["curve"]]
    draw_curve(path, points, Point(**found["recommended"]), Point(**found["rule"]) if found["rule"] else None, note)
