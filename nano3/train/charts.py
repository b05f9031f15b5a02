"""PNG charts of a run, drawn from metrics.jsonl."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

from nano3.report import BLUE, GREEN, GRID, INK, MUTED, ORANGE, PALE
from nano3.train.metrics import FINAL, read_metrics

UNITS = ((1e12, "trillion tokens"), (1e9, "billion tokens"), (1e6, "million tokens"), (1e3, "thousand tokens"))
Lines = list[dict[str, Any]]


def draw(metrics: Path, folder: Path) -> list[Path]:
    """Draw loss.png, learning_rate.png and, for models with experts, expert_load.png; returns what was drawn."""
    lines = read_metrics(metrics)
    train = [line for line in lines if line["kind"] == "train"]
    if not train:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    charts = {"loss.png": _loss, "learning_rate.png": _learning_rate}
    if train[-1].get("load_max_over_mean"):
        charts["expert_load.png"] = _expert_load
    return [_save(chart(lines, train), folder / name) for name, chart in charts.items()]


def _loss(lines: Lines, train: Lines) -> Any:
    heldout = [line for line in lines if line["kind"] == "heldout"]
    lengths = list(dict.fromkeys(line.get("seq_len") for line in heldout))
    unit, label = _unit(train)
    figure, axes = _figure(2 if heldout else 1, "Loss")
    x, y = [line["tokens"] / unit for line in train], [line["loss"] for line in train]
    axes[0].plot(x, y, color=PALE, linewidth=1, label="training, each step")
    axes[0].plot(x, smooth(y), color=BLUE, linewidth=1.8, label="training, smoothed")
    if heldout:
        for axis, key in zip(axes, ("loss", "bits_per_byte"), strict=True):
            for at, colour in zip(lengths, itertools.cycle((ORANGE, GREEN, INK)), strict=False):
                rows = [line for line in heldout if line.get("seq_len") == at]
                _heldout(axis, rows, key, unit, colour, f" at {at}" if len(lengths) > 1 else "")
        _dress(axes[1], label, "bits per byte")
    _dress(axes[0], label, "nats per token")
    for axis in axes:
        _log_scale(axis)
    return figure


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


def _learning_rate(lines: Lines, train: Lines) -> Any:
    unit, label = _unit(train)
    figure, axes = _figure(2, "Optimizer")
    x = [line["tokens"] / unit for line in train]
    axes[0].plot(x, [line["lr"] for line in train], color=GREEN, linewidth=1.8, label="learning rate")
    axes[0].set_ylim(bottom=0)
    axes[0].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    norms = [line["grad_norm"] for line in train]
    axes[1].plot(x, norms, color=PALE, linewidth=1, label="each step")
    axes[1].plot(x, smooth(norms), color=BLUE, linewidth=1.8, label="smoothed")
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


def _figure(n_axes: int, title: str) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * n_axes + 0.6, 3.9), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13, fontweight="bold", color=INK, x=0.01, ha="left")
    return figure, list(figure.subplots(1, n_axes, squeeze=False)[0])


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
