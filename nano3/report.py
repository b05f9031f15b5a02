"""What every part that reports to people shares: figures of charts and their colours, numbers and times as text, JSON
lines, the file of a measurement."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from nano3.files import write_atomic
from nano3.reading import parse_json

INK, MUTED, GRID = "#1b1f24", "#6b7280", "#e5e7eb"
BLUE, ORANGE, GREEN, PALE = "#2563eb", "#d9480f", "#0f766e", "#bfdbfe"


def new_figure(width: float, height: float, title: str = "", note: str = "", title_size: float = 12) -> Any:
    """An empty figure of so many inches, its title above it and the conditions that it holds for below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=title_size, fontweight="bold", color=INK, x=0.01, ha="left")
    if note:
        figure.supxlabel(note, fontsize=8, color=MUTED, x=0.01, ha="left")
    return figure


def plain(axis: Any, grid: Literal["x", "y", "both"] = "y") -> None:
    """A grid behind what is drawn, no frame."""
    axis.grid(True, axis=grid, color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(MUTED)
    axis.tick_params(colors=MUTED, which="both")


def write_result(found: Mapping[str, Any], folder: Path) -> Path:
    """Write result.json, which `nano3 bench compare` and scripts read, into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    result = folder / "result.json"
    write_atomic(result, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    return result


def count(value: float) -> str:
    """A number with a metric suffix: 950, 12.3K, 4.10M, 25.0T."""
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def clock(seconds: float) -> str:
    """Seconds as 42s, 3m12s or 5h04m."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a file of JSON lines; a torn last line (the process was killed) is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(parse_json(text))
        except ValueError:
            continue
    return lines
