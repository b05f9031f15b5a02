"""Runs beside each other: their final figures, and their curves in one chart."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.reading import read_toml
from nano3.report import BLUE, GREEN, ORANGE
from nano3.train.tracking.chart_style import dress, figure, log_scale, save, smooth, unit, widen
from nano3.train.tracking.metrics import CLOCK, FINAL, numbers, read_metrics
from nano3.train.tracking.runs import CONFIG, METRICS, Run, metrics_file, read_run

LOSS, REWARD = "loss", "reward"
WORDS = {LOSS: "training loss, nats per token (smoothed)", REWARD: "mean reward of the rollouts (smoothed)"}
SFT, DECIDING = "sft", ("sources_file", "heldout_fraction", "seed")
"""The verb that trains on conversations, and settings that decide which texts are held out."""
OF_ROLLOUTS = ("pass_rate", "zero_variance", "truncated", "entropy", "quality", "think_tokens", "final_tokens")
COLORS = (BLUE, ORANGE, GREEN, "#7c3aed", "#be185d", "#0891b2", "#854d0e")


@dataclass(frozen=True)
class Curves:
    """A run with its measurements."""

    label: str
    run: Run
    train: list[dict[str, Any]]
    """Lines about steps that have the metric."""
    heldout: list[dict[str, Any]]
    """Lines about held-out text at the first of its lengths, those of samples and the last one."""
    metric: str = LOSS
    """LOSS, or REWARD for a run that is trained on rewards."""

    def at_end(self, name: str) -> float | None:
        """A metric at the end, averaged as the chart's line is: over about the last 2 % of the steps. None: there is
        none of that name."""
        values = [line[name] for line in numbers(self.train, name)]
        return smooth(values)[-1] if values else None

    def table(self) -> dict[str, Any]:
        """Figures at the end, as JSON values."""
        score = self.run.scores[0] if self.run.scores else None
        rate = self.run.tokens / self.run.seconds if self.run.seconds else None
        return {
            "label": self.label,
            "run": str(self.run.path),
            "state": self.run.state,
            "steps": self.run.step,
            "tokens": self.run.tokens,
            "train_loss": self.at_end(LOSS),
            **{name: self.at_end(name) for name in (REWARD, *OF_ROLLOUTS)},
            "heldout_loss": score.loss if score else None,
            "heldout_bits_per_byte": score.bits_per_byte if score else None,
            "heldout_tokens": score.targets if score else None,
            "heldout_final": score.final if score else None,
            "seconds": self.run.seconds,
            "tokens_per_second": rate,
        }


def read_curves(texts: Sequence[str]) -> list[Curves]:
    """Runs by folder, `LABEL=FOLDER` for one with a name of its own.

    Raises:
        UserError: a folder that does not exist or holds no steps with a training loss or a reward; or some have a loss
            and others a reward.
    """
    found = [_read(text) for text in texts]
    if len({curves.metric for curves in found}) > 1:
        kinds = ", ".join(f"{curves.label} by its {curves.metric}" for curves in found)
        raise UserError(f"these runs have no metric in common: {kinds}; compare runs of one kind")
    seen: dict[str, int] = {}
    for place, curves in enumerate(found):
        seen[curves.label] = seen.get(curves.label, 0) + 1
        if seen[curves.label] > 1:
            found[place] = replace(curves, label=f"{curves.label} ({seen[curves.label]})")
    return found


def _read(text: str) -> Curves:
    label, equals, rest = text.partition("=")
    path = Path(rest if equals and not Path(text).exists() else text)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder")
    lines = read_metrics(metrics_file(path))
    steps = [line for line in lines if line["kind"] == "train"]
    metric = LOSS if numbers(steps, LOSS) or not numbers(steps, REWARD) else REWARD
    train = numbers(steps, metric)
    if not train:
        raise UserError(f"{path} has no steps with a loss or a reward to compare (no such line in {METRICS})")
    heldout = numbers([line for line in lines if line["kind"] == "heldout"], "bits_per_byte")
    length = heldout[0].get("seq_len") if heldout else None
    heldout = [line for line in heldout if line.get("seq_len") == length]
    name = label if equals and path != Path(text) else path.resolve().name
    return Curves(name, read_run(path), train, heldout, metric)


def different_texts(runs: Sequence[Curves]) -> str:
    """What to say of runs whose losses are those of different texts, by their settings; empty where they are not."""
    kinds = {curves.run.verb for curves in runs if curves.metric == LOSS}
    if not kinds or any(curves.metric != LOSS for curves in runs):
        return ""
    texts = [found for curves in runs if (found := _texts(curves.run))]
    keys = dict.fromkeys(key for one in texts for key in one)
    what = [key for key in keys if any(one.get(key) != texts[0].get(key) for one in texts)]
    if {SFT} < kinds:
        what = [f"{' and '.join(sorted(kinds))} train on texts of two kinds"]
    return (
        f"these runs have different texts ({', '.join(what)}): their losses and held-out scores cannot be compared"
        if what
        else ""
    )


def _texts(run: Run) -> dict[str, Any]:
    """Settings that decide which texts a run trains on and holds out, as far as its folder tells; a share in the blend
    changes neither."""
    try:
        data = read_toml(run.path / CONFIG)["data"]
        named = {name: data.get("sources", {}).get(name) for name, share in data["blend"].items() if share > 0}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
    return {"data.blend": named, **{f"data.{key}": data.get(key) for key in DECIDING}}


def draw(runs: Sequence[Curves], path: Path) -> Path:
    """Write the chart: training loss and held-out text over the tokens, and the loss over the time; or the reward over
    the steps and over the time.

    Args:
        runs: a colour each, of one metric.
        path: PNG file; its folder is made.
    """
    longest = max((curves.train for curves in runs), key=lambda train: train[-1]["tokens"])
    factor, label = unit(longest) if runs[0].metric == LOSS else (1.0, "step")
    place = "tokens" if runs[0].metric == LOSS else "step"
    scored, timed = (
        any(curves.heldout for curves in runs),
        all(CLOCK in line for curves in runs for line in curves.train),
    )
    drawn, axes = figure(1 + scored + timed, "Runs")
    if note := different_texts(runs):
        drawn.supxlabel(note, fontsize=9, color=ORANGE, x=0.01, ha="left")
    panels = iter(axes)
    axis = next(panels)
    for curves, colour in _coloured(runs):
        _line(axis, curves, [line[place] / factor for line in curves.train], colour)
    dress(axis, label, WORDS[runs[0].metric])
    if scored:
        axis = next(panels)
        for curves, colour in _coloured(runs):
            _heldout(axis, curves, factor, colour)
        dress(axis, label, "held-out text, bits per byte")
        widen(axis)
    if timed:
        axis = next(panels)
        for curves, colour in _coloured(runs):
            _line(axis, curves, [line[CLOCK]["seconds"] / 60 for line in curves.train], colour)
        dress(axis, "minutes of training", WORDS[runs[0].metric])
    for axis in axes if runs[0].metric == LOSS else ():
        log_scale(axis)
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(drawn, path)


def _coloured(runs: Sequence[Curves]) -> Any:
    return zip(runs, itertools.cycle(COLORS), strict=False)


def _line(axis: Any, curves: Curves, x: list[float], colour: str) -> None:
    values = smooth([line[curves.metric] for line in curves.train])
    marker = "o" if len(x) == 1 else ""
    axis.plot(x, values, color=colour, marker=marker, linewidth=1.6, label=curves.label)


def _heldout(axis: Any, curves: Curves, factor: float, colour: str) -> None:
    """Samples as a line, the score of the end as a hollow diamond."""
    sample = [line for line in curves.heldout if not line.get(FINAL)]
    final = [line for line in curves.heldout if line.get(FINAL)]
    for rows, style, name in ((sample, "o-", "a sample"), (final, "D", "at the end")):
        if rows:
            x, y = [line["tokens"] / factor for line in rows], [line["bits_per_byte"] for line in rows]
            fill = "none" if rows is final else colour
            label = f"{curves.label}, {name}: {y[-1]:.3f}"
            axis.plot(x, y, style, color=colour, markerfacecolor=fill, markersize=5, linewidth=1.4, label=label)
