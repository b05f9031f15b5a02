"""PNG charts of a run, drawn from metrics.jsonl: `python -m nano3.train.tracking.charts METRICS FOLDER [SHOWN]`."""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nano3.report import BLUE, GREEN, INK, MUTED, ORANGE, PALE
from nano3.train.tracking.chart_style import dress, figure, log_scale, save, smooth, unit, widen
from nano3.train.tracking.metrics import FINAL, numbers, read_metrics
from nano3.train.tracking.policy_charts import is_drawn, policy_charts

Lines = list[dict[str, Any]]
DRAWN = ("step", "tokens", "seq_len", "loss", "balance_loss", "lr", "grad_norm")
"""Numbers of a line that metrics.png leaves out: counters, and what other charts or next-token training have."""
ABREAST = 3
"""Charts beside each other in metrics.png."""
COLORS, MARKERS = (ORANGE, GREEN, INK, "#7c3aed", "#be185d"), ("D", "s", "^", "v", "o")
"""Of held-out scores at several lengths. Their markers are hollow, so that one under another is seen."""
LENGTH_COLORS = (BLUE, "#7c3aed", "#0891b2", "#be185d", "#854d0e")
"""Of training steps of several lengths."""


def draw(metrics: Path, folder: Path, shown: str = "loss") -> list[Path]:
    """Draw what metrics.jsonl has; returns what was drawn.

    loss.png, learning_rate.png; for models with experts expert_load.png; metrics.png where a loss reports others than
    next-token training; of reinforcement learning those of nano3.train.tracking.policy_charts.

    Args:
        metrics: metrics.jsonl.
        folder: where to.
        shown: metric of loss.png.
    """
    lines = read_metrics(metrics)
    train = [line for line in lines if line["kind"] == "train"]
    if not train:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    charts: dict[str, Callable[[], Any]] = {}
    if numbers(train, shown):
        charts["loss.png"] = lambda: _loss(lines, train, shown)
    charts["learning_rate.png"] = lambda: _learning_rate(train)
    if train[-1].get("load_max_over_mean"):
        charts["expert_load.png"] = lambda: _expert_load(lines, train)
    charts |= (of_policy := policy_charts(train))
    others = [name for name in _scalar_names(train) if name not in (shown, *DRAWN)]
    if others := [name for name in others if not (of_policy and is_drawn(name))]:
        charts["metrics.png"] = lambda: _metrics(train, others)
    return [save(chart(), folder / name) for name, chart in charts.items()]


def _scalar_names(train: Lines) -> list[str]:
    return list(dict.fromkeys(name for line in train for name, value in line.items() if isinstance(value, int | float)))


def _loss(lines: Lines, train: Lines, shown: str) -> Any:
    heldout = [line for line in lines if line["kind"] == "heldout"]
    lengths = list(dict.fromkeys(line.get("seq_len") for line in heldout))
    factor, label = unit(train)
    title = "Loss" if shown == "loss" else shown.replace("_", " ").capitalize()
    drawn, axes = figure(2 if heldout else 1, title)
    _training(axes[0], numbers(train, shown), shown, factor)
    if heldout:
        keys = {"loss": axes[0]} if shown == "loss" else {}
        for key, axis in (keys | {"bits_per_byte": axes[1]}).items():
            for at, look in zip(lengths, itertools.cycle(zip(COLORS, MARKERS, strict=True)), strict=False):
                rows = [line for line in heldout if line.get("seq_len") == at and isinstance(line[key], float | int)]
                if rows:
                    _heldout(axis, rows, key, factor, look, f" at {at:,}" if len(lengths) > 1 else "")
        dress(axes[1], label, "bits per byte")
        widen(axes[1])
    dress(axes[0], label, "nats per token" if shown == "loss" else shown.replace("_", " "))
    for axis in axes:
        log_scale(axis)
    return drawn


def _training(axis: Any, train: Lines, name: str, factor: float) -> None:
    """The metric of every step; steps of several lengths, whose losses differ, in a colour for each."""
    lengths = sorted({line.get("seq_len", 0) for line in train})
    if len(lengths) == 1:
        return _curve(axis, train, name, factor, "training, ")
    for length, colour in zip(lengths, itertools.cycle(LENGTH_COLORS), strict=False):
        rows = [line for line in train if line.get("seq_len", 0) == length]
        x, y = [line["tokens"] / factor for line in rows], [line[name] for line in rows]
        axis.plot(x, y, ".", color=colour, markersize=3, alpha=0.35)
        axis.plot(x, smooth(y), color=colour, linewidth=1.6, label=f"training at {length:,}")


def _metrics(train: Lines, names: list[str]) -> Any:
    """A small chart for each name."""
    factor, label = unit(train)
    drawn, axes = figure(min(len(names), ABREAST), "Metrics", math.ceil(len(names) / ABREAST))
    for axis, name in zip(axes, names, strict=False):
        _curve(axis, numbers(train, name), name, factor)
        dress(axis, label, name.replace("_", " "))
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    return drawn


def _curve(axis: Any, lines: Lines, name: str, factor: float, prefix: str = "") -> None:
    """Every step's value and a smoothed line; of a single step a point."""
    x, y = [line["tokens"] / factor for line in lines], [line[name] for line in lines]
    marker = "o" if len(x) == 1 else ""
    axis.plot(x, y, color=PALE, linewidth=1, label=f"{prefix}each step")
    axis.plot(x, smooth(y), marker=marker, color=BLUE, linewidth=1.8, label=f"{prefix}smoothed")


def _heldout(axis: Any, heldout: Lines, key: str, factor: float, look: tuple[str, str], place: str) -> None:
    """A line through the scores of one sample of the held-out text, and the last score apart: it is of all of it.

    The last score is written beside its point, or with the names of the lines where there is a `place`, since points
    of several lengths lie near each other. The only point of an axis has its name there too: one in a legend would look
    like a second score.
    """
    whole = [line for line in heldout if line.get(FINAL)]
    sample = [line for line in heldout if not line.get(FINAL)]
    last, (colour, marker) = heldout[-1], look
    alone = not (place or sample or axis.lines)
    for rows, style, name in (
        (sample, "o-", f"held-out{place}, a sample"),
        (whole, marker, f"held-out{place}, at the end"),
    ):
        if rows:
            name += f": {rows[-1][key]:.3f}" if place and rows[-1] is last else ""
            at, fill = [line["tokens"] / factor for line in rows], "none" if rows is whole else colour
            size = 7 if rows is whole else 4
            axis.plot(at, [r[key] for r in rows], style, color=colour, markerfacecolor=fill, markersize=size,
                      linewidth=1.4, label=None if alone else name)  # fmt: skip
    if not place:
        end, name = (last["tokens"] / factor, last[key]), "held-out, at the end: " if alone else ""
        axis.annotate(f"{name}{last[key]:.3f}", end, (4, 8), textcoords="offset points", ha="right", color=INK)


def _learning_rate(train: Lines) -> Any:
    factor, label = unit(train)
    drawn, axes = figure(2, "Learning rate and gradient norm")
    x = [line["tokens"] / factor for line in train]
    axes[0].plot(x, [line["lr"] for line in train], color=GREEN, linewidth=1.8, label="learning rate")
    axes[0].set_ylim(bottom=0)
    axes[0].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    _curve(axes[1], numbers(train, "grad_norm"), "grad_norm", factor)
    dress(axes[0], label, "learning rate")
    dress(axes[1], label, "gradient norm")
    log_scale(axes[1])
    return drawn


def _expert_load(lines: Lines, train: Lines) -> Any:
    loads = [line for line in lines if line["kind"] == "load" and line["shares"]]
    factor, label = unit(train)
    drawn, axes = figure(2 if loads else 1, "Expert load")
    x = [line["tokens"] / factor for line in train]
    rows = [line["load_max_over_mean"] for line in train]
    worst, mean = [max(row) for row in rows], [sum(row) / len(row) for row in rows]
    if len(rows[0]) > 1:
        axes[0].plot(x, smooth(mean), color=BLUE, linewidth=1.6, label="mean of the blocks")
    axes[0].plot(
        x, smooth(worst), color=ORANGE, linewidth=1.6, label="worst block" if len(rows[0]) > 1 else "busiest expert"
    )
    axes[0].axhline(1.0, color=MUTED, linewidth=1, linestyle="--", label="perfect balance")
    dress(axes[0], label, "largest share / mean share")
    if loads:
        (_heat_map if len(loads[-1]["shares"]) > 1 else _bars)(drawn, axes[1], loads[-1])
        axes[1].set_title(f"at {loads[-1]['tokens'] / factor:.3g} {label}", fontsize=10, color=MUTED, loc="left")
    return drawn


def _over_mean(load: dict[str, Any]) -> list[list[float]]:
    return [[share * len(row) for share in row] for row in load["shares"]]


def _blocks(load: dict[str, Any]) -> list[int]:
    """Places of the blocks with experts in the model, from 0; of a run of an older nano3 among each other."""
    return load.get("blocks") or list(range(len(load["shares"])))


def _heat_map(drawn: Any, axis: Any, load: dict[str, Any]) -> None:
    values, blocks = _over_mean(load), _blocks(load)
    image = axis.imshow(values, aspect="auto", cmap="RdBu_r", vmin=0, vmax=2, interpolation="nearest")
    axis.set_xlabel("expert", color=INK)
    axis.set_ylabel("block", color=INK)
    places = range(0, len(values), 1 if len(values) <= 24 else 4)
    axis.set_yticks(places, [str(blocks[i]) for i in places])
    axis.spines[:].set_visible(False)
    axis.tick_params(colors=MUTED, which="both")
    bar = drawn.colorbar(image, ax=axis, label="share / mean share", extend="max")
    bar.outline.set_visible(False)


def _bars(drawn: Any, axis: Any, load: dict[str, Any]) -> None:
    (values,), (block,) = _over_mean(load), _blocks(load)
    axis.bar(range(len(values)), values, color=BLUE, width=0.7)
    axis.axhline(1.0, color=MUTED, linewidth=1, linestyle="--")
    dress(axis, f"expert of block {block}", "share / mean share")
    axis.set_xlim(-0.6, len(values) - 0.4)
    axis.grid(False, axis="x")
    if len(values) <= 16:
        axis.set_xticks(range(len(values)))


def main() -> None:
    """Draw what the command line names, with what other processes leave of the processors."""
    if hasattr(os, "nice"):
        os.nice(10)
    draw(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:4])


if __name__ == "__main__":
    main()
