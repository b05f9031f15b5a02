"""How the charts of training look: figure, axes, smoothing, and files that are never seen half written."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from nano3.report import INK, new_figure, plain

UNITS = ((1e12, "trillion tokens"), (1e9, "billion tokens"), (1e6, "million tokens"), (1e3, "thousand tokens"))
LEAST_SPAN = 0.04
"""Least height of an axis, as a share of its values: a smaller spread would draw rounding as a slope."""


def smooth(values: list[float], window: float = 0.02) -> list[float]:
    """Moving average over about `window` of the series; it looks both ways, so that it does not lag behind."""
    decay = math.exp(-1.0 / max(1.0, window * len(values)))
    behind, ahead = _trailing(values, decay), _trailing(values[::-1], decay)[::-1]
    return [(b + a) / 2 for b, a in zip(behind, ahead, strict=True)]


def _trailing(values: list[float], decay: float) -> list[float]:
    """Exponential average of the values so far, without a bias to its start."""
    out, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = decay * total + value, decay * weight + 1.0
        out.append(total / weight)
    return out


def unit(train: list[dict[str, Any]]) -> tuple[float, str]:
    """Factor and label of the token axis."""
    last = train[-1]["tokens"]
    return next(((factor, label) for factor, label in UNITS if last >= factor), (1.0, "tokens"))


def figure(n_axes: int, title: str, n_rows: int = 1) -> tuple[Any, list[Any]]:
    """A figure with a title, and its axes row by row."""
    made = new_figure(5.2 * n_axes + 0.6, 3.9 * n_rows, title, title_size=13)
    return made, list(made.subplots(n_rows, n_axes, squeeze=False).flat)


def dress(axis: Any, x_label: str, y_label: str) -> None:
    """Labels, grid, frame and legend."""
    axis.set_xlabel(x_label, color=INK)
    axis.set_ylabel(y_label, color=INK)
    axis.set_xlim(left=0)
    plain(axis, grid="both")
    if handles := axis.get_legend_handles_labels()[0]:
        # In a frame a point of the legend is not taken for one of the chart.
        points = any(handle.get_linestyle() == "None" for handle in handles)
        axis.legend(frameon=points, fontsize=9)


def widen(axis: Any) -> None:
    """Give an axis whose values hardly differ some height; one of a single point begins at 0."""
    values = [float(y) for line in axis.lines for y in line.get_ydata() if math.isfinite(y)]
    if not values:
        return
    if len(values) == 1 and values[0] > 0:
        axis.set_ylim(0, 1.25 * values[0])
        return
    low, high = min(values), max(values)
    least = LEAST_SPAN * max(abs(low), abs(high))
    if high - low < least:
        middle = (low + high) / 2
        axis.set_ylim(middle - least, middle + least)
        axis.ticklabel_format(axis="y", useOffset=False)


def log_scale(axis: Any) -> None:
    """Logarithmic y axis with plain numbers, where the values spread enough to need one."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    low, high = axis.get_ylim()
    low = max(low, min(min(line.get_ydata()) for line in axis.lines))
    if low <= 0 or high / low < 3:
        return
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if high / low > 20 else (1, 1.5, 2, 3, 4, 5, 7)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def save(drawn: Any, path: Path) -> Path:
    """Write a figure as PNG; who looks at `path` meanwhile sees the old one or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    drawn.savefig(partial, format="png")
    return partial.replace(path)
