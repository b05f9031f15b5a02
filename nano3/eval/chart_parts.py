"""What the charts of comparisons share: colours, intervals, and how a panel looks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from nano3.eval.compare import Cell
from nano3.report import BLUE, GREEN, INK, ORANGE, plain

COLORS = (BLUE, ORANGE, GREEN, "#7c3aed", "#be185d", "#0891b2", "#854d0e")


def whiskers(cells: Sequence[Cell]) -> list[list[float]]:
    """Distances of the ends of intervals from the values, below and above."""
    low = [math.nan if cell.low is None else max(0.0, cell.value - cell.low) for cell in cells]
    high = [math.nan if cell.high is None else max(0.0, cell.high - cell.value) for cell in cells]
    return [low, high]


def dress(axis: Any, title: str) -> None:
    """Title, grid and colours of a panel."""
    axis.set_title(title, fontsize=9, color=INK, loc="left")
    plain(axis)
    axis.tick_params(which="both", labelsize=8)
