"""What every part that reports to people shares: colours of charts, numbers and times as text, JSON lines, errors of
servers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nano3.reading import parse_json

INK, MUTED, GRID = "#1b1f24", "#6b7280", "#e5e7eb"
BLUE, ORANGE, GREEN, PALE = "#2563eb", "#d9480f", "#0f766e", "#bfdbfe"


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
