"""Chart of the bounds: output tokens a second by policy and type of cache, the batch that fits above each bar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nano3.report import BLUE, GRID, INK, MUTED, ORANGE

COLORS = {"bf16": BLUE, "fp8": ORANGE}
WIDTH = 0.38


def draw(found: dict[str, Any], path: Path) -> Path:
    """Bars in groups of one policy."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, load = found["bounds"], found["load"]
    figure = Figure(figsize=(8.5, 4.6), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    title = f"{found['model']} on one {found['gpu']['name']}: output tokens a second at most"
    figure.suptitle(title, fontsize=12, fontweight="bold", color=INK, x=0.01, ha="left")
    conditions = f"{load['isl']:,} tokens in, {load['osl']:,} out, the largest batch that fits (above each bar)."
    figure.supxlabel(f"{conditions} Reckoned from bytes and FLOP, not measured.", fontsize=8, color=MUTED,
                     x=0.01, ha="left")  # fmt: skip
    axis = figure.subplots()
    titles = list(dict.fromkeys(row["title"] for row in rows))
    caches = list(dict.fromkeys(row["cache"] for row in rows))
    for i, cache in enumerate(caches):
        shift = (i - (len(caches) - 1) / 2) * WIDTH
        for row in (row for row in rows if row["cache"] == cache):
            _bar(axis, row, titles.index(row["title"]) + shift)
        axis.bar(0, 0, color=COLORS[cache], label=f"{cache} cache")
    axis.set_xticks(range(len(titles)), titles, fontsize=9)
    axis.set_ylim(0, 1.15 * max(1.0, *(row["output_rate"] for row in rows)))
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    axis.grid(True, axis="y", color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(MUTED)
    axis.tick_params(colors=MUTED)
    figure.savefig(path)
    return path


def _bar(axis: Any, row: dict[str, Any], place: float) -> None:
    axis.bar(place, row["output_rate"], WIDTH * 0.95, color=COLORS[row["cache"]])
    text = f"{row['batch']:,}" if row["batch"] else "does not fit"
    axis.annotate(text, (place, row["output_rate"]), (0, 3), textcoords="offset points", ha="center", va="bottom",
                  fontsize=8, color=INK if row["batch"] else MUTED, rotation=0 if row["batch"] else 90)  # fmt: skip
