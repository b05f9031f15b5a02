"""Draws speed.png from the medians in speed.toml: `python docs/pictures/speed.py`."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nano3.report import BLUE, INK, MUTED

HERE = Path(__file__).parent
PEER = "#cbd5e1"


def main() -> None:
    """See above."""
    measured = tomllib.loads((HERE / "speed.toml").read_text("utf-8"))
    figure = Figure(figsize=(7.6, 4.6), dpi=160, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(measured["title"], fontsize=13, fontweight="bold", color=INK, x=0.01, ha="left")
    figure.supxlabel(measured["conditions"], fontsize=7.5, color=MUTED, x=0.01, ha="left")
    panels = figure.subplots(len(measured["work"]), 1, gridspec_kw={"hspace": 0.1},
                             height_ratios=[len(work["tokens_per_second"]) for work in measured["work"]])  # fmt: skip
    for axis, work in zip(panels, measured["work"], strict=True):
        bars(axis, work["name"], work["tokens_per_second"])
    figure.savefig(HERE / "speed.png")


def bars(axis: Any, name: str, rates: dict[str, float]) -> None:
    """One kind of work: a bar a program, nano3's first, and how many times as fast it is."""
    ours = rates["nano3"]
    for row, (program, rate) in enumerate(rates.items()):
        axis.text(-0.012 * ours, row, program, va="center", ha="right", fontsize=9, color=INK)
        axis.barh(row, rate, color=BLUE if row == 0 else PEER, height=0.78)
        text = f"{rate:,.0f}" if row == 0 else f"{rate:,.0f}    nano3: {ours / rate:.1f} times as fast"
        axis.text(rate + 0.012 * ours, row, text, va="center", fontsize=9, color=INK if row == 0 else MUTED,
                  fontweight="bold" if row == 0 else "normal")  # fmt: skip
    axis.set_yticks([])
    axis.set_xlim(-0.4 * ours, ours * 1.12)
    axis.set_ylim(len(rates) - 0.5, -0.5)
    axis.text(-0.4 * ours, 0, name, va="center", fontsize=9, color=INK)
    axis.tick_params(length=0)
    axis.set_xticks([])
    axis.spines[:].set_visible(False)


if __name__ == "__main__":
    main()
