"""The heat map of expert use: mixture blocks against experts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nano3.eval.experts import Use
from nano3.report import INK, MUTED

MOST_NUMBERS = 16
"""Experts up to which each cell says its percentage."""


def draw(use: Use, path: Path, title: str, threshold: float) -> None:
    """Write a PNG: each cell's colour says how many times the even share an expert has; cells above the threshold are
    framed where they are few enough to be told apart."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    shares = use.shares
    times = shares / use.even
    blocks, experts = times.shape
    width, height = min(16.0, 3.2 + experts * 0.45), min(12.0, 2.0 + blocks * 0.38)
    figure = Figure(figsize=(max(width, 6.4), max(height, 3.0)), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    norm = TwoSlopeNorm(1.0, 0.0, max(2.0, float(times.max())))
    image = axis.imshow(times, aspect="auto", cmap="RdBu_r", norm=norm, interpolation="nearest")
    axis.spines[:].set_visible(False)
    axis.tick_params(which="both", length=0, colors=MUTED)
    axis.set_ylabel("block", color=INK)
    axis.set_yticks(range(blocks), [str(block) for block in use.blocks])
    step = 1 if experts <= 32 else max(1, experts // 16)
    axis.set_xticks(range(0, experts, step))
    if experts <= MOST_NUMBERS:
        for i, j in np.ndindex(blocks, experts):
            dark = float(norm(times[i, j])) > 0.85 or float(norm(times[i, j])) < 0.15
            axis.text(j, i, f"{shares[i, j]:.1f}", ha="center", va="center", fontsize=8, color="white" if dark else INK)
    above = np.argwhere(shares > threshold)
    framed = 0 < len(above) <= shares.size / 2
    for i, j in above if framed else ():
        axis.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=INK, linewidth=1.5))
    axis.set_xlabel(
        f"expert (even share {use.even:.3g} %{f'; framed: above {threshold:g} %' if framed else ''})", color=INK
    )
    figure.suptitle(title, fontsize=12, fontweight="bold", color=INK, x=0.01, ha="left")
    bar = figure.colorbar(image, ax=axis)
    bar.set_label("times the even share", color=MUTED)
    bar.ax.tick_params(colors=MUTED, length=2)
    bar.outline.set_visible(False)
    figure.savefig(path)
