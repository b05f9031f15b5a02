"""Draws needles.png from the scores in needles.toml: `python docs/pictures/needles.py`."""

from __future__ import annotations

import tomllib
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nano3.report import BLUE, GRID, INK, MUTED, ORANGE

HERE = Path(__file__).parent


def main() -> None:
    """See above."""
    scores = tomllib.loads((HERE / "needles.toml").read_text("utf-8"))
    lengths = scores["lengths"]
    figure = Figure(figsize=(7.6, 4.2), dpi=160, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(scores["title"], fontsize=12, fontweight="bold", color=INK, x=0.01, ha="left")
    figure.supxlabel(scores["conditions"], fontsize=8, color=MUTED, x=0.01, ha="left")
    axis = figure.subplots()
    axis.axvline(scores["trained"], color=MUTED, linewidth=1, linestyle="--")
    axis.text(scores["trained"] * 1.03, 4, "rows of\npretraining", fontsize=8, color=MUTED)
    for run, color in zip(scores["runs"], (BLUE, ORANGE), strict=True):
        found, low, high = zip(*run["found"], strict=True)
        axis.fill_between(lengths, low, high, color=color, alpha=0.12, linewidth=0)
        axis.plot(lengths, found, color=color, marker="o", linewidth=2.4, label=run["name"])
        axis.text(
            lengths[-1] * 1.04, found[-1], f"{found[-1]} %", color=color, fontsize=11, fontweight="bold", va="center"
        )
    axis.set_xscale("log", base=2)
    axis.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axis.set_ylim(0, 100)
    axis.set_ylabel("needles found, percent", color=INK)
    axis.set_xlabel("tokens of context", color=INK)
    axis.grid(True, axis="y", color=GRID)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(MUTED)
    axis.tick_params(colors=MUTED)
    axis.legend(frameon=False, fontsize=9, loc="upper right")
    figure.savefig(HERE / "needles.png")


if __name__ == "__main__":
    main()
