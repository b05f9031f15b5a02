"""PNG charts of a run, drawn from metrics.jsonl."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nano3.report import BLUE, GREEN, GRID, INK, MUTED, ORANGE, PALE
from nano3.train.metrics import FINAL, read_metrics

UNITS = ((1e12, "trillion tokens"), (1e9, "billion tokens"), (1e6, "million tokens"), (1e3, "thousand tokens"))
Lines = list[dict[str, Any]]
DRAWN = ("step", "tokens", "seq_len", "loss", "balance_loss", "lr", "grad_norm")
"""Numbers of a line that metrics.png leaves out: counters, and what other charts or next-token training have."""
ABREAST = 3
"""Charts beside each other in metrics.png."""


def draw(metrics: Path, folder: Path, shown: str = "loss") -> list[Path]:
    """Draw what metrics.jsonl has; returns what was drawn.

    loss.png, learning_rate.png; for models with experts expert_load.png; metrics.png where a loss reports others than
    next-token training.

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
    if _numbers(train, shown):
        charts["loss.png"] = lambda: _loss(lines, train, shown)
    charts["learning_rate.png"] = lambda: _learning_rate(train)
    if train[-1].get("load_max_over_mean"):
        charts["expert_load.png"] = lambda: _expert_load(lines, train)
    if others := [name for name in _scalar_names(train) if name not in (shown, *DRAWN)]:
        charts["metrics.png"] = lambda: _metrics(train, others)
    return [_save(chart(), folder / name) for name, chart in charts.items()]


def _numbers(train: Lines, name: str) -> Lines:
    """The lines in which this metric is a number."""
    return [line for line in train if isinstance(line.get(name), int | float)]


def _scalar_names(train: Lines) -> list[str]:
    return list(dict.fromkeys(name for line in train for name, value in line.items() if isinstance(value, int | float)))


def _loss(lines: Lines, train: Lines, shown: str) -> Any:
    heldout = [line for line in lines if line["kind"] == "heldout"]
    lengths = list(dict.fromkeys(line.get("seq_len") for line in heldout))
    unit, label = _unit(train)
    title = "Loss" if shown == "loss" else shown.replace("_", " ").capitalize()
    figure, axes = _figure(2 if heldout else 1, title)
    _curve(axes[0], _numbers(train, shown), shown, unit, "training, ")
    if heldout:
        keys = {"loss": axes[0]} if shown == "loss" else {}
        for key, axis in (keys | {"bits_per_byte": axes[1]}).items():
            for at, colour in zip(lengths, itertools.cycle((ORANGE, GREEN, INK)), strict=False):
                rows = [line for line in heldout if line.get("seq_len") == at]
                _heldout(axis, rows, key, unit, colour, f" at {at}" if len(lengths) > 1 else "")
        _dress(axes[1], label, "bits per byte")
    _dress(axes[0], label, "nats per token" if shown == "loss" else shown.replace("_", " "))
    for axis in axes:
        _log_scale(axis)
    return figure


def _metrics(train: Lines, names: list[str]) -> Any:
    """A small chart for each name."""
    unit, label = _unit(train)
    figure, axes = _figure(min(len(names), ABREAST), "Metrics", math.ceil(len(names) / ABREAST))
    for axis, name in zip(axes, names, strict=False):
        _curve(axis, _numbers(train, name), name, unit)
        _dress(axis, label, name.replace("_", " "))
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    return figure


def _curve(axis: Any, lines: Lines, name: str, unit: float, prefix: str = "") -> None:
    """Every step's value and a smoothed line."""
    x, y = [line["tokens"] / unit for line in lines], [line[name] for line in lines]
    axis.plot(x, y, color=PALE, linewidth=1, label=f"{prefix}each step")
    axis.plot(x, smooth(y), color=BLUE, linewidth=1.8, label=f"{prefix}smoothed")


def _heldout(axis: Any, heldout: Lines, key: str, unit: float, colour: str, place: str) -> None:
    """A line through the scores of one sample of the held-out text, and the last score apart: it is of all of it.

    The last score is written beside its point, or with the names of the lines where there is a `place`, since points
    of several lengths lie near each other.
    """
    whole = [line for line in heldout if line.get(FINAL)]
    sample = [line for line in heldout if not line.get(FINAL)]
    last = heldout[-1]
    for rows, style, name in (
        (sample, "o-", f"held-out{place}, a sample"),
        (whole, "D", f"held-out{place}, at the end"),
    ):
        if rows:
            name += f": {rows[-1][key]:.3f}" if place and rows[-1] is last else ""
            at = [line["tokens"] / unit for line in rows]
            axis.plot(at, [r[key] for r in rows], style, color=colour, markersize=4, linewidth=1.4, label=name)
    if not place:
        end = (last["tokens"] / unit, last[key])
        axis.annotate(f"{last[key]:.3f}", end, (0, 8), textcoords="offset points", ha="right", color=INK)


def _learning_rate(train: Lines) -> Any:
    unit, label = _unit(train)
    figure, axes = _figure(2, "Optimizer")
    x = [line["tokens"] / unit for line in train]
    axes[0].plot(x, [line["lr"] for line in train], color=GREEN, linewidth=1.8, label="learning rate")
    axes[0].set_ylim(bottom=0)
    axes[0].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    _curve(axes[1], train, "grad_norm", unit)
    _dress(axes[0], label, "learning rate")
    _dress(axes[1], label, "gradient norm")
    _log_scale(axes[1])
    return figure


def _expert_load(lines: Lines, train: Lines) -> Any:
    loads = [line for line in lines if line["kind"] == "load" and line["shares"]]
    unit, label = _unit(train)
    figure, axes = _figure(2 if loads else 1, "Expert load")
    x = [line["tokens"] / unit for line in train]
    rows = [line["load_max_over_mean"] for line in train]
    worst, mean = [max(row) for row in rows], [sum(row) / len(row) for row in rows]
    axes[0].plot(x, smooth(worst), color=ORANGE, linewidth=1.6, label="worst block")
    axes[0].plot(x, smooth(mean), color=BLUE, linewidth=1.6, label="mean of blocks")
    axes[0].axhline(1.0, color=MUTED, linewidth=1, linestyle="--", label="perfect balance")
    _dress(axes[0], label, "largest share / mean share")
    if loads:
        _heat_map(figure, axes[1], loads[-1]["shares"], loads[-1]["tokens"] / unit, label)
    return figure


def _heat_map(figure: Any, axis: Any, shares: list[list[float]], at: float, label: str) -> None:
    n_experts = len(shares[0])
    values = [[share * n_experts for share in row] for row in shares]
    image = axis.imshow(values, aspect="auto", cmap="RdBu_r", vmin=0, vmax=2, interpolation="nearest")
    axis.set_xlabel("expert")
    axis.set_ylabel("mixture block")
    axis.set_yticks(range(len(values)) if len(values) <= 24 else range(0, len(values), 4))
    axis.set_title(f"after {at:.3g} {label}", fontsize=10, color=MUTED, loc="left")
    figure.colorbar(image, ax=axis, label="share / mean share", extend="max")


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


def _unit(train: Lines) -> tuple[float, str]:
    """Factor and label of the token axis."""
    last = train[-1]["tokens"]
    return next(((factor, label) for factor, label in UNITS if last >= factor), (1.0, "tokens"))


def _figure(n_axes: int, title: str, n_rows: int = 1) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * n_axes + 0.6, 3.9 * n_rows), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13, fontweight="bold", color=INK, x=0.01, ha="left")
    return figure, list(figure.subplots(n_rows, n_axes, squeeze=False).flat)


def _dress(axis: Any, x_label: str, y_label: str) -> None:
    axis.set_xlabel(x_label, color=INK)
    axis.set_ylabel(y_label, color=INK)
    axis.set_xlim(left=0)
    axis.grid(True, color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(MUTED)
    axis.tick_params(colors=MUTED, which="both")
    axis.legend(frameon=False, fontsize=9)


def _log_scale(axis: Any) -> None:
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


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path)
    return path
