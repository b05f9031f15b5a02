"""Chart of the bounds: output tokens a second by policy and type of cache, the batch that fits above each bar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nano3.report import BLUE, INK, MUTED, ORANGE, new_figure, plain

COLORS = {"bf16": BLUE, "fp8": ORANGE}
WIDTH = 0.38


def draw(found: dict[str, Any], path: Path) -> Path:
    """Bars in groups of one policy."""
    rows, load = found["bounds"], found["load"]
    title = f"{found['model']} on one {found['gpu']['name']}: output tokens a second at most"
    conditions = f"{load['isl']:,} tokens in, {load['osl']:,} out, the largest batch that fits (above each bar)."
    figure = new_figure(8.5, 4.6, title, f"{conditions} Reckoned from bytes and FLOP, not measured.")
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
    plain(axis)
    figure.savefig(path)
    return path


def _bar(axis: Any, row: dict[str, Any], place: float) -> None:
    axis.bar(place, row["output_rate"], WIDTH * 0.95, color=COLORS[row["cache"]])
    text = f"{row['batch']:,}" if row["batch"] else "does not fit"
    axis.annotate(text, (place, row["output_rate"]), (0, 3), textcoords="offset points", ha="center", va="bottom",
                  fontsize=8, color=INK if row["batch"] else MUTED, rotation=0 if row["batch"] else 90)  # fmt: skip
