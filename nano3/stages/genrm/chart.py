"""Chart of a judge's scores on held-out pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nano3.report import BLUE, GREEN, INK, MUTED, ORANGE
from nano3.stages.genrm.figures import Judged, Measure, Scoring, mean_scores
from nano3.train.tracking.chart_style import dress, figure, save

NAMES = {"warm_start": "supervised start", "grpo": "after GRPO"}
COLORS = {"warm_start": ORANGE, "grpo": BLUE}
CONSTANT = "best constant"
BARS = {"score_error": "mean |score error| (lower is better)", "order_agreement": "share of pairs in the right order"}
"""Measures that are drawn, with their axes."""


def draw_judging(scoring: Scoring, stages: Mapping[str, Sequence[Judged]], path: Path) -> Path:
    """Score error and order agreement beside the best constant's, and the mean score given by true score."""
    found = {measure.name: measure for measure in scoring.measures}
    bars = [
        ("score_error", "mean |score error| (lower is better)"),
        ("order_agreement", "share of pairs in the right order"),
    ]
    panels = [(found[name], words) for name, words in bars if name in found]
    pairs = found["score_error"].pairs
    drawn, axes = figure(len(panels) + 1, f"Judgements of {pairs:,} held-out pairs, 95 % intervals")
    for axis, (measure, words) in zip(axes, panels, strict=False):
        _bars(axis, measure, words)
    _by_score(axes[-1], stages)
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(drawn, path)


def _bars(axis: Any, measure: Measure, words: str) -> None:
    names = [CONSTANT, *(NAMES[stage] for stage in measure.stages)]
    means = list(measure.stages.values())
    heights = [measure.constant, *(mean.value for mean in means)]
    colours = [MUTED, *(COLORS[stage] for stage in measure.stages)]
    axis.bar(range(len(heights)), heights, color=colours, width=0.6)
    for place, mean in enumerate(means, start=1):
        axis.plot([place, place], [mean.low, mean.high], color=INK, linewidth=1.6)
    for place, height in enumerate(heights):
        axis.annotate(
            f"{height:.2f}", (place, 0), xytext=(0, 4), textcoords="offset points", ha="center", color="white"
        )
    dress(axis, "", words)
    axis.set_xticks(range(len(names)), names)
    axis.set_xlim(-0.6, len(names) - 0.4)
    axis.set_ylim(0, 1 if measure.name == "order_agreement" else None)
    axis.grid(False, axis="x")


def _by_score(axis: Any, stages: Mapping[str, Sequence[Judged]]) -> None:
    axis.plot([1, 5], [1, 5], color=GREEN, linewidth=1, linestyle="--", label="no error")
    for stage, judged in stages.items():
        found = mean_scores(judged)
        if found:
            means = [mean for mean, _ in found.values()]
            axis.plot(list(found), means, color=COLORS[stage], marker="o", linewidth=1.8, label=NAMES[stage])
    dress(axis, "true score", "mean score given")
    axis.set_xlim(0.8, 5.2)
    axis.set_ylim(0.8, 5.2)
    axis.set_xticks(range(1, 6))
    axis.set_yticks(range(1, 6))
