"""How well a classifier judges hosts that it has not seen: precision and recall by threshold, and a chart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nano3.curate.classifier.examples import Example

THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(1, 20))


@dataclass(frozen=True)
class Point:
    """What a threshold keeps."""

    threshold: float
    precision: float
    recall: float
    kept: float
    """Share of all documents."""


def point(scores: np.ndarray, positive: np.ndarray, threshold: float) -> Point:
    """What is kept at a threshold of scores, (documents,) float, of which some are positive, (documents,) bool."""
    kept = scores >= threshold
    right = int((kept & positive).sum())
    precision = right / int(kept.sum()) if kept.any() else 1.0
    return Point(threshold, precision, right / int(positive.sum()), float(kept.mean()))


def curve(scores: np.ndarray, positive: np.ndarray) -> list[Point]:
    """A point for each score that occurs, from the highest down: precision and recall of every possible threshold."""
    order = np.argsort(-scores, kind="stable")
    ranked, right = scores[order], np.cumsum(positive[order])
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    return [
        Point(
            float(ranked[i]), int(right[i]) / (int(i) + 1), int(right[i]) / int(right[-1]), (int(i) + 1) / len(ranked)
        )
        for i in ends
    ]


def average_precision(points: Sequence[Point]) -> float:
    """Area below the steps of a curve: the mean precision over recall."""
    before, area = 0.0, 0.0
    for one in points:
        area += (one.recall - before) * one.precision
        before = one.recall
    return area


def recommended(points: Sequence[Point], recall: float) -> Point:
    """The highest threshold of a curve that keeps such a share of what is wanted."""
    return next(one for one in points if one.recall >= recall)


def groups(examples: Sequence[Example], scores: np.ndarray, threshold: float) -> list[dict[str, Any]]:
    """Of each host or folder: documents, and how many of either kind are kept at a threshold."""
    found: dict[str, dict[str, Any]] = defaultdict(
        lambda: {"positive": 0, "positive kept": 0, "negative": 0, "negative kept": 0}
    )
    for example, score in zip(examples, scores.tolist(), strict=True):
        kind = "positive" if example.positive else "negative"
        found[example.group][kind] += 1
        found[example.group][f"{kind} kept"] += score >= threshold
    return [{"group": name, **found[name]} for name in sorted(found)]


def draw_curve(path: Path, points: Sequence[Point], chosen: Point, rule: Point | None, note: str) -> None:
    """Write a PNG: precision over recall, and both over the threshold.

    Args:
        path: the file.
        points: of `curve`.
        chosen: the recommended one.
        rule: what the rule of `code-page` reaches, for classifiers of pages.
        note: what it was measured on.
    """
    from nano3.report import BLUE, GREEN, MUTED, ORANGE, new_figure, plain

    figure = new_figure(9, 4, "Precision and recall on held-out documents", note)
    left, right = figure.subplots(1, 2)
    left.step([one.recall for one in points], [one.precision for one in points], where="pre", color=BLUE)
    left.plot(chosen.recall, chosen.precision, "o", color=ORANGE, label=f"threshold {chosen.threshold:.4g}")
    if rule:
        left.plot(rule.recall, rule.precision, "s", color=GREEN, label="the rule of code-page, 0.5")
    left.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.05))
    left.legend(frameon=False, fontsize=8, loc="lower left")
    right.plot([one.threshold for one in points], [one.precision for one in points], color=BLUE, label="precision")
    right.plot([one.threshold for one in points], [one.recall for one in points], color=ORANGE, label="recall")
    right.axvline(chosen.threshold, color=MUTED, linewidth=0.8, linestyle="--")
    right.set(xlabel="threshold", xlim=(0, 1), ylim=(0, 1.05))
    right.legend(frameon=False, fontsize=8, loc="lower center")
    for axis in (left, right):
        plain(axis, "both")
    figure.savefig(path, metadata={"Software": None})
