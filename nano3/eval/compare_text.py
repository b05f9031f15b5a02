"""A comparison in words: the cells of its table, and a report card in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from nano3.eval.compare import Cell, Row
from nano3.eval.compare_stage import Stage
from nano3.eval.ruler.run import length_text

STAR = "* the 95 % interval of the difference leaves out 0"
FIRST, PREVIOUS = "first", "previous"
BASELINES = {FIRST: "the first", PREVIOUS: "the one before"}
"""What each stage is compared with, in words."""


def row_name(row: Row) -> str:
    """Task, and metric where a kind has several."""
    return row.key.task if row.key.kind == "ruler" else f"{row.key.task}, {row.key.metric}"


def row_length(row: Row) -> str:
    """Length of the context; empty where the row has none."""
    return "" if row.key.length is None else length_text(row.key.length)


def cell_text(cell: Cell | None, between: str = " ") -> str:
    """Value, interval, and behind `between` the difference, with * where it is clear."""
    if cell is None:
        return ""
    digits = 1 if abs(cell.value) >= 10 or cell.value == 0 else 3
    text = f"{cell.value:.{digits}f}"
    if cell.low is not None and cell.high is not None:
        text += f" ({_rounded(cell.low, digits - 1)}-{_rounded(cell.high, digits - 1)})"
    if cell.change is not None:
        text += f"{between}{_rounded(cell.change, digits, '+')}" + ("*" if cell.differs else "")
    return text


def any_differs(rows: Sequence[Row]) -> bool:
    """Whether any cell has a star."""
    return any(cell is not None and cell.differs for row in rows for cell in row.cells)


def card(stages: Sequence[Stage], rows: Sequence[Row], notes: Sequence[str], chart: str, baseline: str) -> str:
    """The comparison as a page in Markdown.

    Args:
        stages, rows, notes: of the comparison.
        chart: the chart's file as the page names it.
        baseline: FIRST or PREVIOUS.
    """
    labels = [stage.label for stage in stages]
    lines = [f"# {labels[0]} to {labels[-1]}" if len(labels) > 1 else f"# {labels[0]}", ""]
    lines += [f"![scores by stage, with 95 % intervals]({chart})", ""]
    lines += [f"Value (95 % interval), difference from {BASELINES[baseline]}; {STAR}.", ""]
    with_length = any(row.key.length is not None for row in rows)
    lines += [_line(["", *(["length"] if with_length else []), *labels])]
    lines += [_line(["---"] * (1 + with_length) + ["--:"] * len(labels))]
    for row in rows:
        place = [row_name(row), *([row_length(row)] if with_length else [])]
        better = "" if row.higher_is_better else " (less is better)"
        lines += [_line([place[0] + better, *place[1:], *(cell_text(cell) for cell in row.cells)])]
    lines += ["", *(f"- {note}" for note in notes)] if notes else []
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|').replace('*', chr(92) + '*') for cell in cells)} |"


def _rounded(value: float, digits: int, sign: str = "") -> str:
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"  # + 0.0: never -0
