"""Chart of tokens a second: nano3, the peers, and what the machine's ceiling would allow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nano3.bench.compute import OURS
from nano3.report import BLUE, GREEN, INK, MUTED, ORANGE, PALE, new_figure, plain

COLORS = (BLUE, ORANGE, GREEN, MUTED, PALE)


MANY_LENGTHS = 3
"""From so many lengths of text on, lines over the length instead of bars."""


def draw(figures: dict[str, Any], path: Path) -> Path:
    """Bars for each case and side, whiskers from the slowest to the fastest run, a dashed line at the ceiling; lines
    over the length where there are many lengths."""
    cases = figures["cases"]
    lines = figures["kind"] != "decode" and len(cases) >= MANY_LENGTHS
    width = 7.0 if lines else 2.2 + 2.9 * len(cases)
    title = f"{figures['kind'].capitalize()}, {figures['model']}: tokens a second"
    figure = new_figure(width, 4.2, title, "\n".join(conditions(figures)))
    if lines:
        _lines(figure.subplots(), cases)
    else:
        for axis, case in zip(figure.subplots(1, len(cases), squeeze=False)[0], cases, strict=True):
            _bars(axis, case)
    figure.savefig(path)
    return path


def conditions(figures: dict[str, Any]) -> tuple[str, str]:
    """What the figures hold for, in two lines: machine and threads, nano3's types."""
    machine, ours = figures["machine"], figures["sides"][OURS]
    types = f"nano3: weights {ours['weights']}, activations {ours['activations']}"
    return machine_text(machine), types


def machine_text(machine: dict[str, Any]) -> str:
    """What nano3 computed on: the GPU's name, else the processor's and the number of threads."""
    return machine.get("device") or f"{machine['cpu']}, {threads_text(machine['threads'])}"


def threads_text(count: int) -> str:
    """`1 thread`, `2 threads`."""
    return f"{count} thread{'s' if count > 1 else ''}"


def _whiskers(sides: list[dict[str, Any]]) -> list[list[float]] | None:
    """From the medians down to the slowest and up to the fastest runs; none where no side ran more than once."""
    if all(len(side["seconds"]["all"]) < 2 for side in sides):
        return None
    rates = [side["tokens_per_second"] for side in sides]
    return [[r["median"] - r["min"] for r in rates], [r["max"] - r["median"] for r in rates]]


def _lines(axis: Any, cases: list[dict[str, Any]]) -> None:
    """Tokens a second over tokens of a sequence; where cost is linear the line is level."""
    lengths = [case["length"] for case in cases]
    for name, color in zip(cases[0]["sides"], COLORS * 2, strict=False):
        done = [case for case in cases if "tokens_per_second" in case["sides"][name]]
        rates = [case["sides"][name]["tokens_per_second"] for case in done]
        spread = _whiskers([case["sides"][name] for case in done])
        places, heights = [case["length"] for case in done], [r["median"] for r in rates]
        axis.errorbar(places, heights, yerr=spread, color=color, marker="o", markersize=4, capsize=3, label=name)
    axis.plot(
        lengths, [ceiling_rate(case) for case in cases], color=MUTED, linestyle="--", linewidth=1, label="ceiling"
    )
    axis.set_xscale("log", base=2)
    axis.set_xticks(lengths, [f"{length:,}" for length in lengths], fontsize=8)
    axis.set_ylim(0, None)
    axis.set_xlabel("tokens of the sequence", color=MUTED, fontsize=9)
    axis.legend(frameon=False, fontsize=8)
    plain(axis)


def _bars(axis: Any, case: dict[str, Any]) -> None:
    sides = {name: side["tokens_per_second"] for name, side in case["sides"].items() if "tokens_per_second" in side}
    for place, ((name, rate), color) in enumerate(zip(sides.items(), COLORS * 2, strict=False)):
        spread = _whiskers([case["sides"][name]])
        axis.bar(place, rate["median"], 0.7, yerr=spread, color=color, ecolor=INK, capsize=3)
        axis.annotate(
            f"{rate['median']:,.0f}", (place, rate["max"]), (0, 4), textcoords="offset points", ha="center", color=INK
        )
    ceiling = ceiling_rate(case)
    axis.axhline(ceiling, color=MUTED, linestyle="--", linewidth=1)
    axis.annotate(
        f"ceiling {ceiling:,.0f}", (len(sides) - 0.6, ceiling), (0, 3), textcoords="offset points", ha="right",
        color=MUTED, fontsize=8,
    )  # fmt: skip
    axis.set_ylim(0, 1.15 * max(ceiling, *(rate["max"] for rate in sides.values())))
    axis.set_xlim(-0.6, len(sides) - 0.4)
    axis.set_xticks(range(len(sides)), [name.replace(" ", "\n") for name in sides], fontsize=8)
    axis.set_title(case["name"], fontsize=10, color=INK, loc="left")
    plain(axis)


def ceiling_rate(case: dict[str, Any]) -> float:
    """Tokens a second at which nano3 would reach the nearer of its ceilings."""
    ours = case["sides"][OURS]
    share = max(ours["share_of_matmul"], ours.get("share_of_read", 0.0))
    return ours["tokens_per_second"]["median"] / share
