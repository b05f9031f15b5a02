"""Heat maps and lines of evaluation results, as PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nano3.report import INK, MUTED, new_figure

COLORS = "viridis"
"""Readable in grey and by eyes that see no red or green."""
BRIGHT = 60.0
"""Cells from here on take dark writing."""
WIDE = 6
"""Panels of more columns stand two side by side, else three."""
CELL = 0.62
"""Inches of a cell, where there is room."""


@dataclass(frozen=True)
class Grid:
    """Values from 0 to 100 in rows and columns; NaN where there is none."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]


def heat_maps(grids: Sequence[Grid], path: Path, title: str, x_label: str, y_label: str, bar_label: str) -> Path:
    """Panels with one colour scale from 0 to 100 and the value in each cell.

    Args:
        grids: panels, all with the same columns.
        path: PNG file to write.
        title: of the whole.
        x_label: of the columns.
        y_label: of the rows.
        bar_label: of the colour scale.
    """
    across = min(2 if len(grids[0].columns) > WIDE else 3, len(grids))
    down = -(-len(grids) // across)
    names = max(len(name) for grid in grids for name in grid.rows)
    width = across * (max(2.6, CELL * len(grids[0].columns)) + 0.085 * names + 0.4) + 1.3
    height = down * (max(1.2, 0.34 * max(len(grid.rows) for grid in grids)) + 0.65) + 0.7
    figure = new_figure(width, height, title)
    axes = figure.subplots(down, across, squeeze=False)
    flat = list(axes.flat)
    images = []
    for number, (axis, grid) in enumerate(zip(flat, grids, strict=False)):
        images.append(_panel(axis, grid))
        axis.set_xlabel(x_label if number + across >= len(grids) else "", color=MUTED, fontsize=9)
        axis.set_ylabel(y_label if number % across == 0 else "", color=MUTED, fontsize=9)
    for axis in flat[len(grids) :]:
        axis.set_visible(False)
    bar = figure.colorbar(images[0], ax=axes, shrink=min(1.0, 3.2 / height), pad=0.02)
    bar.set_label(bar_label, color=MUTED, fontsize=9)
    bar.ax.tick_params(labelsize=8, colors=MUTED, length=2)
    bar.outline.set_visible(False)
    figure.savefig(path)
    return path


def _panel(axis: Any, grid: Grid) -> Any:
    from matplotlib import colormaps

    colors = colormaps[COLORS].with_extremes(bad="#f3f4f6")
    image = axis.imshow(grid.values, aspect="auto", cmap=colors, vmin=0, vmax=100, interpolation="nearest")
    axis.set_xticks(range(len(grid.columns)), grid.columns, fontsize=8)
    axis.set_yticks(range(len(grid.rows)), grid.rows, fontsize=8)
    axis.tick_params(which="both", length=0, colors=INK)
    axis.spines[:].set_visible(False)
    axis.set_title(grid.title, fontsize=9, color=INK, loc="left")
    axis.set_xticks([x + 0.5 for x in range(len(grid.columns) - 1)], minor=True)
    axis.set_yticks([y + 0.5 for y in range(len(grid.rows) - 1)], minor=True)
    axis.grid(which="minor", color="white", linewidth=1)
    for y, row in enumerate(grid.values):
        for x, value in enumerate(row):
            if not math.isnan(value):
                color = INK if value >= BRIGHT else "white"
                axis.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=7.5, color=color)
    return image
