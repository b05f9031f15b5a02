"""Charts of reinforcement learning, from the lines about steps in metrics.jsonl (nano3.rl.steps has their names)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from nano3.report import BLUE, GREEN, INK, MUTED, ORANGE, PALE
from nano3.train.tracking.chart_style import dress, figure, log_scale, smooth
from nano3.train.tracking.metrics import numbers

Lines = list[dict[str, Any]]
COLORS = (BLUE, ORANGE, GREEN, "#7c3aed", "#be185d", "#0891b2", "#854d0e", "#4d7c0f")
"""Of environments."""
MOST_NAMED = 8
"""Environments that are drawn one by one; the chart of more than these has the mean alone."""
ABREAST = 3
BINS = "drawn_bins"
"""Tasks drawn, by environment: a list of counts by pass rate in the profile, in bins of equal width."""
REWARDS = {"reward": "mean reward", "pass_rate": "samples that pass"}
"""Of reward.png: metrics with their names."""
PANELS: tuple[tuple[str, dict[str, str]], ...] = (
    ("share", {"zero_variance": "groups of equal rewards", "truncated": "samples cut off at their limit"}),
    ("nats", {"entropy": "entropy of the policy"}),
    ("tokens", {"answer_tokens": "drawn, of a sample"}),
    ("nats", {"mismatch_largest": "largest of a step", "mismatch": "mean"}),
    ("share", {"masked_tokens": "tokens taken out by importance bounds"}),
)
"""Of rollouts.png: unit, and metrics with their names."""
FEEDBACK: tuple[tuple[str, dict[str, str]], ...] = (
    ("score, 1 to 5", {"quality": "judge's score"}),
    ("tokens", {"think_tokens": "reasoning", "final_tokens": "final answer"}),
    ("reward", {
        "think_adjustment": "size of the adjustment, reasoning", "answer_adjustment": "size of the adjustment, answer",
        "think_bonus": "bonus, reasoning", "answer_bonus": "bonus, answer",
    }),
)  # fmt: skip
"""Of feedback.png."""
LEAST_TOP = 0.01
"""Of an axis that begins at 0."""
MOST_COLUMNS = 60
DRAWN = (
    "reward", "pass_rate", "zero_variance", "truncated", "entropy", "mismatch", "mismatch_largest", "masked_tokens",
    "drawn_pass_rate", "target_mean", "answer_tokens", "policy_loss", *(name for _, of in FEEDBACK for name in of),
)  # fmt: skip


def policy_charts(train: Lines) -> dict[str, Callable[[], Any]]:
    """What draws each chart, by the name of its file; none for a run that is not trained on rewards."""
    if not (numbers(train, "reward") and numbers(train, "zero_variance")):
        return {}
    charts = {"reward.png": _reward, "rollouts.png": _rollouts}
    if numbers(train, "quality"):
        charts["feedback.png"] = _feedback
    if numbers(train, "target_mean"):
        charts["curriculum.png"] = _curriculum
    return {name: partial(chart, train) for name, chart in charts.items()}


def is_drawn(name: str) -> bool:
    """Whether these charts have a metric, or would have too many of its kind: those by environment."""
    return name in DRAWN or "/" in name


def environments(train: Lines, metric: str) -> list[str]:
    """NAME of all METRIC/NAME, in order of appearance."""
    names = (name for line in train for name in line if name.startswith(f"{metric}/"))
    return [name.partition("/")[2] for name in dict.fromkeys(names)]


def _reward(train: Lines) -> Any:
    panels = [(name, words) for name, words in REWARDS.items() if numbers(train, name)]
    drawn, axes = figure(len(panels), "Rewards of the rollouts")
    for axis, (metric, label) in zip(axes, panels, strict=True):
        _by_environment(axis, train, metric)
        dress(axis, "step", label)
        _from_zero(axis)
    return drawn


def _rollouts(train: Lines) -> Any:
    """Shares, entropy, answers' length, and how far trainer and sampler are apart."""
    panels = [(unit, {name: words for name, words in of.items() if numbers(train, name)}) for unit, of in PANELS]
    panels = [(unit, of) for unit, of in panels if of]
    drawn, axes = figure(min(ABREAST, len(panels)), "Rollouts and their update", math.ceil(len(panels) / ABREAST))
    for axis, (unit, of) in zip(axes, panels, strict=False):
        for (name, words), colour in zip(of.items(), COLORS, strict=False):
            _curve(axis, train, name, colour, words)
        dress(axis, "step", unit)
        if "mismatch" in of:
            axis.set_title("|log-probability in trainer - in sampler|", fontsize=10, color=MUTED, loc="left")
            log_scale(axis)
        else:
            _from_zero(axis)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    return drawn


def _feedback(train: Lines) -> Any:
    """What a judge says, how long answers are, and what their lengths add to the rewards."""
    drawn, axes = figure(len(FEEDBACK), "A judge's feedback")
    for axis, (unit, of) in zip(axes, FEEDBACK, strict=True):
        for (name, words), colour in zip(of.items(), COLORS, strict=False):
            _curve(axis, train, name, colour, words)
        dress(axis, "step", unit)
        _from_zero(axis)
    return drawn


def _curriculum(train: Lines) -> Any:
    """Report figure 6: how hard the drawn tasks are over the run, by environment, against the falling target."""
    lines = [line for line in numbers(train, "target_mean") if isinstance(line.get(BINS), dict)]
    names = list(dict.fromkeys(name for line in lines for name in line[BINS]))
    panels = len(names) + 1
    drawn, axes = figure(min(ABREAST, panels), "Curriculum: pass rates of the drawn tasks", math.ceil(panels / ABREAST))
    _target(axes[0], train, INK)
    _curve(axes[0], train, "drawn_pass_rate", BLUE, "drawn tasks, mean")
    dress(axes[0], "step", "pass rate in the profile")
    axes[0].set_ylim(0, 1)
    axes[0].set_title("all environments", fontsize=10, color=MUTED, loc="left")
    image = None
    for axis, name in zip(axes[1:], names, strict=False):
        image = _heat_map(axis, lines, name)
    if image is not None:
        bar = drawn.colorbar(image, ax=axes[:panels], label="share of the step's tasks")
        bar.outline.set_visible(False)
    for axis in axes[panels:]:
        axis.set_axis_off()
    return drawn


def _heat_map(axis: Any, lines: Lines, name: str) -> Any:
    """Shares of an environment's drawn tasks by pass rate (up) and step; neighbouring steps in one column where there
    are many."""
    import numpy as np

    n_bins = max(len(line[BINS].get(name, ())) for line in lines)
    counts = np.array([line[BINS].get(name) or [0] * n_bins for line in lines], float)
    steps = [line["step"] for line in lines]
    n_columns = min(steps[-1] - steps[0] + 1, MOST_COLUMNS)
    columns = np.zeros((n_bins, n_columns))
    for step, row in zip(steps, counts, strict=True):
        columns[:, (step - steps[0]) * n_columns // (steps[-1] - steps[0] + 1)] += row
    shares = columns / np.maximum(columns.sum(0, keepdims=True), 1)
    extent = (steps[0] - 0.5, steps[-1] + 0.5, 0.0, 1.0)
    centers = (np.arange(n_bins) + 0.5) / n_bins
    image = axis.imshow(
        shares, origin="lower", aspect="auto", extent=extent, cmap="Blues", vmin=0, vmax=0.6, interpolation="nearest"
    )
    filled = counts.sum(1) > 0
    means = counts[filled] @ centers / counts[filled].sum(1)
    axis.plot(
        np.array(steps)[filled], smooth(means.tolist(), 0.05), color=INK, linewidth=1.4, label="drawn tasks, mean"
    )
    _target(axis, lines, ORANGE)
    axis.set_title(name, fontsize=10, color=MUTED, loc="left")
    dress(axis, "step", "pass rate in the profile")
    axis.set_xlim(extent[:2])
    axis.grid(False)
    return image


def _target(axis: Any, lines: Lines, colour: str) -> None:
    rows = numbers(lines, "target_mean")
    x, y = [line["step"] for line in rows], [line["target_mean"] for line in rows]
    axis.plot(x, y, color=colour, linewidth=1.8, linestyle="--", label="target mean", marker="o" if len(x) == 1 else "")


def _from_zero(axis: Any) -> None:
    values = [float(y) for line in axis.lines for y in line.get_ydata()]
    axis.set_ylim(min([0.0, *values]), max([LEAST_TOP, *values]) * 1.05)


def _by_environment(axis: Any, train: Lines, metric: str) -> None:
    names = environments(train, metric)
    if 1 < len(names) <= MOST_NAMED:
        for name, colour in zip(names, itertools.cycle(COLORS), strict=False):
            _curve(axis, train, f"{metric}/{name}", colour, name, dots=False)
    _curve(axis, train, metric, INK, "all")


def _curve(axis: Any, train: Lines, name: str, colour: str, words: str, dots: bool = True) -> None:
    """Each step's value pale, and a smoothed line."""
    rows = numbers(train, name)
    if not rows:
        return
    x, y = [line["step"] for line in rows], [float(line[name]) for line in rows]
    if dots:
        axis.plot(x, y, color=PALE if colour == BLUE else colour, linewidth=1, alpha=1 if colour == BLUE else 0.25)
    axis.plot(x, smooth(y, 0.05), color=colour, linewidth=1.8, marker="o" if len(x) == 1 else "", label=words)
