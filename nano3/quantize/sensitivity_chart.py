"""Chart of what quantizing each part alone costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nano3.report import BLUE, GREEN, INK, MUTED, ORANGE, new_figure, plain

COLORS = (BLUE, ORANGE, GREEN, "#7c3aed", MUTED, "#be123c")
MOST_SHOWN = 40


def draw(found: dict[str, Any], path: Path) -> Path:
    """Bars of the loss's increase in percent, the costliest part on top, with 95 % intervals; coloured by kind."""
    parts = found["parts"][:MOST_SHOWN]
    title = f"{found['model']}: loss with one part in FP8"
    left = len(found["parts"]) - len(parts)
    note = f"{found['rows']} held-out rows, {found['targets']:,} tokens; bf16: {found['loss']:.4f}. * in bf16 by the "
    note += "report's selection." + (f" {left} more parts are not shown." if left else "")
    figure = new_figure(8, 1.6 + 0.24 * len(parts), title, note)
    axis, kinds = figure.subplots(), list(dict.fromkeys(part["kind"] for part in parts))
    for kind, color in zip(kinds, COLORS * len(kinds), strict=False):
        places = [i for i, part in enumerate(parts) if part["kind"] == kind]
        values = [100 * parts[i]["increase"] for i in places]
        ends = [[value - 100 * parts[i]["low"] for i, value in zip(places, values, strict=True)],
                [100 * parts[i]["high"] - value for i, value in zip(places, values, strict=True)]]  # fmt: skip
        ends = [[max(0.0, end) for end in side] for side in ends]
        axis.barh(places, values, 0.7, xerr=ends, color=color, ecolor=INK, capsize=2, label=kind)
    axis.set_yticks(range(len(parts)), [part["name"] + (" *" if part["kept"] else "") for part in parts], fontsize=8)
    axis.invert_yaxis()
    axis.axvline(0, color=MUTED, linewidth=0.8)
    axis.set_xlabel("increase of the loss, %", fontsize=9, color=MUTED)
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    plain(axis, grid="x")
    figure.savefig(path)
    return path
