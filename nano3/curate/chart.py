"""The chart of a run: what is left after each step, and why the rest was dropped."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nano3.report import BLUE, INK, MUTED, ORANGE, count

if TYPE_CHECKING:
    from nano3.curate.report import Report

MOST_REASONS, LINE = 12, 44
"""Reasons that are drawn, and characters of a line of one."""


def draw(report: Report, path: Path) -> None:
    """Write a PNG: documents and bytes that left each step, and documents dropped by step and reason."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    labels = ["entered", *(step.label for step in report.steps)]
    left = [report.entered, *(step.account.left for step in report.steps)]
    reasons = sorted(
        ((_lines(f"{step.label.partition('-')[2]}: {reason}"), dropped.size.documents)
         for step in report.steps for reason, dropped in step.account.dropped.items()),
        key=lambda one: (-one[1], one[0]),
    )[:MOST_REASONS]  # fmt: skip
    rows = max(len(labels), len(reasons))
    figure = Figure(figsize=(12, 1.5 + 0.32 * rows), layout="constrained")
    figure.suptitle(
        f"{report.manifest.name}: {report.result.documents:,} of {report.entered.documents:,} documents kept",
        fontsize=12, fontweight="bold", color=INK, x=0.01, ha="left",
    )  # fmt: skip
    documents, sizes, dropped = figure.subplots(1, 3)
    _bars(documents, "documents left", labels, [size.documents for size in left], BLUE)
    _bars(sizes, "bytes left", labels, [size.bytes for size in left], BLUE)
    _bars(dropped, "documents dropped", [name for name, _ in reasons], [n for _, n in reasons], ORANGE)
    for axis in (documents, sizes, dropped):
        axis.set_ylim(rows - 0.4, -0.6)  # bars of one height in all three
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _lines(name: str) -> str:
    """A name in two lines at most, broken between words."""
    return "\n".join(textwrap.wrap(name, LINE, max_lines=2, placeholder=" …"))


def _bars(axis: Any, title: str, names: list[str], values: list[int], color: str) -> None:
    axis.barh(range(len(names)), values, color=color)
    axis.set_yticks(range(len(names)), [name.replace("$", r"\$") for name in names], fontsize=8)
    axis.set_title(title, fontsize=9, color=INK, loc="left")
    axis.set_xticks([])
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    axis.spines["left"].set_color(MUTED)
    for place, value in enumerate(values):
        axis.text(value, place, f" {count(value)}", va="center", fontsize=8, color=INK)
    axis.margins(x=0.18)
