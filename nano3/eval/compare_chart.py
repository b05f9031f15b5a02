"""Chart of a comparison: lines over the length where tasks have lengths, else bars; many stages are lines over them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nano3.eval import compare_course
from nano3.eval.chart_parts import COLORS, dress, whiskers
from nano3.eval.compare import Cell, Row
from nano3.eval.compare_stage import Stage
from nano3.eval.ruler.run import AVERAGE_METRIC, length_text
from nano3.report import INK, MUTED, new_figure

COURSE = 4
"""Stages from which a number is drawn over them."""
LEGEND = "Filled points differ clearly from the stage that they are compared with (95 %), hollow ones do not."
ACROSS = 4
UPRIGHT = 44
"""Letters that fit below a panel; names of more lean."""
MOST_LEVEL = 8
"""Bars of a panel whose numbers lie; those of more stand, for want of width."""
FEW = 3
"""Names below which there is room at the sides of a panel's bars."""
LETTER = 0.045
"""Inches of height for each letter of a name that leans."""
SHIFT = 0.08
"""Distance of the stages' points at one length, so that whiskers do not hide each other."""


def draw(stages: Sequence[Stage], rows: Sequence[Row], path: Path) -> Path:
    """Write the chart.

    Args:
        stages: of the comparison.
        rows: of the comparison.
        path: PNG file; its folder is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    (_bars_and_lengths if len(stages) < COURSE else _course)(stages, rows).savefig(path)
    return path


def _course(stages: Sequence[Stage], rows: Sequence[Row]) -> Any:
    """The figure of many stages."""
    panels = compare_course.panels(rows)
    drawn, axes = _figure(len(panels), compare_course.ACROSS, 3.5, 2.5)
    for axis, panel in zip(axes, panels, strict=True):
        compare_course.draw_panel(axis, panel, stages)
    drawn.suptitle(LEGEND, x=0.01, ha="left", fontsize=9, color=MUTED)
    return drawn


def _bars_and_lengths(stages: Sequence[Stage], rows: Sequence[Row]) -> Any:
    """The figure of a few stages, each in a colour."""
    panels = _panels(rows)
    names = max(
        (len(name) for panel in panels if _leans(panel) for name in "\n".join(_bar_names(panel)).split("\n")), default=0
    )
    drawn, axes = _figure(len(panels), ACROSS, 3.5, 2.7 + LETTER * names)
    for axis, panel in zip(axes, panels, strict=True):
        (_lines if panel[0].key.length is not None else _bars)(axis, panel, len(stages))
    handles = [_handle(place) for place in range(len(stages))]
    drawn.legend(
        handles, [stage.label for stage in stages], loc="outside upper left", ncols=len(stages), frameon=False,
        fontsize=9,
    )  # fmt: skip
    return drawn


def _figure(panels: int, most_across: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """A figure and the axes of its panels, each so many inches wide and high."""
    across = min(most_across, panels)
    down = -(-panels // across)
    drawn = new_figure(width * across + 0.6, height * down + 0.9)
    axes = list(drawn.subplots(down, across, squeeze=False).flat)
    for axis in axes[panels:]:
        axis.set_visible(False)
    return drawn, axes[:panels]


def _panels(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that go into one panel: the lengths of a task; all accuracies without length; each other number, of
    all tasks that have it. Means over tasks come first."""
    panels: dict[tuple, list[Row]] = {}
    for row in rows:
        key = row.key
        if key.length is not None:
            place = (key.metric != AVERAGE_METRIC, key.kind, key.task, key.metric)
        elif _is_share(row):
            place = (True, key.kind, "", "")
        else:
            place = (True, key.kind, "", key.metric, row.higher_is_better)
        panels.setdefault(place, []).append(row)
    return [panels[place] for place in sorted(panels, key=lambda place: place[0])]


def _is_share(row: Row) -> bool:
    return row.higher_is_better and all(cell is None or 0 <= cell.value <= 100 for cell in row.cells)


def _lines(axis: Any, panel: Sequence[Row], n_stages: int) -> None:
    lengths = [row.key.length or 0 for row in panel]
    for stage in range(n_stages):
        known = _known(panel, stage)
        cells = [cell for _, cell in known]
        at = [place + SHIFT * (stage - (n_stages - 1) / 2) for place, _ in known]
        axis.errorbar(
            at, [cell.value for cell in cells], yerr=whiskers(cells), color=_color(stage), marker="o", markersize=3.5,
            linewidth=1.6, capsize=2,
        )  # fmt: skip
    axis.set_xticks(range(len(lengths)), [length_text(length) for length in lengths], fontsize=8)
    axis.set_xlabel("context, tokens", color=MUTED, fontsize=8)
    axis.set_xlim(-0.5, len(lengths) - 0.5)
    if all(_is_share(row) for row in panel):
        axis.set_ylim(-4, 104)
        return dress(axis, panel[0].key.task)
    axis.margins(y=0.2)
    _number(axis, panel)


def _bars(axis: Any, panel: Sequence[Row], n_stages: int) -> None:
    width = 0.8 / n_stages
    for stage in range(n_stages):
        known = _known(panel, stage)
        cells = [cell for _, cell in known]
        at = [place + width * (stage - (n_stages - 1) / 2) for place, _ in known]
        axis.bar(at, [cell.value for cell in cells], 0.9 * width, color=_color(stage))
        axis.errorbar(at, [cell.value for cell in cells], yerr=whiskers(cells), fmt="none", ecolor=INK, capsize=2,
                      linewidth=1)  # fmt: skip
        for x, cell in zip(at, cells, strict=True):
            top = cell.value if cell.high is None else cell.high
            axis.annotate(
                f"{cell.value:.3g}", (x, top), (0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=7,
                color=INK, rotation=90 if len(panel) * n_stages > MOST_LEVEL else 0,
            )  # fmt: skip
    share = all(_is_share(row) for row in panel)
    lean = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if _leans(panel) else {}
    axis.set_xticks(range(len(panel)), _bar_names(panel), fontsize=7, **lean)
    axis.margins(y=0.15)
    # The bar of a single name would fill the panel.
    beside = max(0.5, (FEW - len(panel)) / 2)
    axis.set_xlim(-beside, len(panel) - 1 + beside)
    if share:
        metrics = {row.key.metric for row in panel}
        return dress(
            axis, f"{panel[0].key.kind}: {_words(metrics.pop())}, %" if len(metrics) == 1 else panel[0].key.kind
        )
    _number(axis, panel)


def _bar_names(panel: Sequence[Row]) -> list[str]:
    """Tasks, with their metrics where these differ."""
    if len({row.key.metric for row in panel}) == 1:
        return [row.key.task for row in panel]
    return [f"{row.key.task}\n{row.key.metric}" for row in panel]


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def _leans(panel: Sequence[Row]) -> bool:
    """Whether the names of a panel's bars are too many to stand side by side."""
    widest = max(len(line) for name in _bar_names(panel) for line in name.split("\n"))
    return panel[0].key.length is None and len(panel) * (widest + 1) > UPRIGHT


def _number(axis: Any, panel: Sequence[Row]) -> None:
    """Dress a panel of one number that is no share."""
    key, better = panel[0].key, "" if panel[0].higher_is_better else " (lower is better)"
    if key.length is None:
        return dress(axis, f"{key.kind}: {_words(key.metric)}{better}")
    axis.set_ylabel(_words(key.metric), color=MUTED, fontsize=8)
    dress(axis, key.task + better)


def _known(panel: Sequence[Row], stage: int) -> list[tuple[int, Cell]]:
    """(place, cell) of what a stage has; a mean over other tasks than the first stage's is left out."""
    cells = [(place, row.cells[stage], row.cells[0], row.key.metric) for place, row in enumerate(panel)]
    return [
        (place, cell) for place, cell, first, metric in cells
        if cell is not None and not (metric == AVERAGE_METRIC and stage and first is not None and cell.change is None)
    ]  # fmt: skip


def _handle(stage: int) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=_color(stage))


def _color(stage: int) -> str:
    return COLORS[stage % len(COLORS)]
