"""The chart of a run: what is left after each step, and why the rest was dropped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nano3.report import BLUE, INK, MUTED, ORANGE, count

if TYPE_CHECKING:
    from nano3.curate.report import Report

MOST_REASONS = 12


def draw(report: Report, path: Path) -> None:
    """Write a PNG: documents and bytes that left each step, and documents dropped by step and reason."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    labels = [step.label for step in report.steps]
    reasons = sorted(
        ((f"{step.label.partition('-')[2]}: {reason}", dropped.size.documents)
         for step in report.steps for reason, dropped in step.account.dropped.items()),
        key=lambda one: (-one[1], one[0]),
    )[:MOST_REASONS]  # fmt: skip
    height = 1.2 + 0.3 * max(len(labels), len(reasons))
    figure = Figure(figsize=(12, height), layout="constrained")
    documents, sizes, dropped = figure.subplots(1, 3)
    _bars(documents, "documents left", labels, [step.account.left.documents for step in report.steps], BLUE)
    _bars(sizes, "bytes left", labels, [step.account.left.bytes for step in report.steps], BLUE)
    _bars(dropped, "documents dropped", [name for name, _ in reasons], [n for _, n in reasons], ORANGE)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _bars(axis: Any, title: str, names: list[str], values: list[int], color: str) -> None:
    axis.barh(range(len(names)), values, color=color)
    axis.set_yticks(range(len(names)), [name[:40].replace("$", r"\$") for name in names], fontsize=8)
    axis.invert_yaxis()
    axis.set_title(title, fontsize=9, color=INK, loc="left")
    axis.set_xticks([])
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    axis.spines["left"].set_color(MUTED)
    for place, value in enumerate(values):
        axis.text(value, place, f" {count(value)}", va="center", fontsize=8, color=INK)
    axis.margins(x=0.18)
