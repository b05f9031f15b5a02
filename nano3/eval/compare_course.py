"""Chart of a comparison of many stages: each number over the stages, in their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nano3.eval.chart_parts import COLORS, dress, whiskers
from nano3.eval.compare import Cell, Row
from nano3.eval.compare_stage import Stage, is_share
from nano3.eval.ruler.run import length_text
from nano3.report import MUTED

ACROSS = 3
SPREAD = 0.09
"""Distance of the lines' points at one stage, so that whiskers do not hide each other."""
ROOM = 0.075
"""Of a panel's height, for each line of its legend."""


def panels(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that are lines of one panel: the lengths of a task, or all tasks of a number that is no share; each share
    of right answers stands alone."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        key = row.key
        task = key.task if is_share(key) or key.length is not None else ""
        found.setdefault((key.kind, task, key.metric), []).append(row)
    return list(found.values())


def draw_panel(axis: Any, panel: Sequence[Row], stages: Sequence[Stage]) -> None:
    """One panel: a line a row, a point a stage, filled where it clearly differs from its baseline."""
    for number, row in enumerate(panel):
        color, shift = COLORS[number % len(COLORS)], SPREAD * (number - (len(panel) - 1) / 2)
        known = [(place + shift, cell) for place, cell in enumerate(row.cells) if cell is not None]
        at, cells = [place for place, _ in known], [cell for _, cell in known]
        values = [cell.value for cell in cells]
        axis.plot(at, values, color=color, linewidth=1.4, label=_name(row, panel))
        axis.errorbar(at, values, yerr=whiskers(cells), fmt="none", ecolor=color, elinewidth=0.9, capsize=2)
        for place, cell in known:
            axis.plot(place, cell.value, "o", color=color, markersize=4, markerfacecolor=_fill(cell, color))
    axis.set_xticks(range(len(stages)), [stage.label for stage in stages], fontsize=8, rotation=30, ha="right",
                    rotation_mode="anchor")  # fmt: skip
    axis.set_xlim(-0.4, len(stages) - 0.6)
    _scale(axis, panel)
    _title(axis, panel)


def _scale(axis: Any, panel: Sequence[Row]) -> None:
    """Shares from none to all; of other numbers room for the legend above the lines."""
    several = len(panel) > 1
    if all(is_share(row.key) for row in panel):
        axis.set_ylim(-4, 104)
    else:
        axis.margins(y=0.1)
        low, high = axis.get_ylim()
        axis.set_ylim(low, high + (high - low) * ROOM * (len(panel) if several else 0))
    if several:
        axis.legend(fontsize=7, frameon=False, labelcolor=MUTED)


def _title(axis: Any, panel: Sequence[Row]) -> None:
    key = panel[0].key
    better = "" if panel[0].higher_is_better else " (lower is better)"
    if is_share(key):
        return dress(axis, f"{key.task}, % right" if key.kind != "ruler" else f"RULER: {key.task}, %")
    name = key.metric.replace("_", " ")
    dress(axis, f"{name}{better}" if len(panel) > 1 and key.length is None else f"{key.task}: {name}{better}")


def _name(row: Row, panel: Sequence[Row]) -> str:
    """A line of a panel's legend."""
    if len(panel) == 1:
        return ""
    return row.key.task if row.key.length is None else f"{length_text(row.key.length)} tokens"


def _fill(cell: Cell, color: str) -> str:
    return color if cell.change is None or cell.differs else "white"
