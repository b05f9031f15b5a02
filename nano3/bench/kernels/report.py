"""Table and chart of `nano3 bench kernels`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nano3.bench.compute_chart import machine_text
from nano3.report import BLUE, MUTED, ORANGE, new_figure, plain, write_result


def rows(figures: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Op (or `and backward` of the op before), backend, ms, how many times those of nano3's own choice, GFLOP/s, GB/s,
    share of the roofline, and what bounds it."""
    before = ""
    for case in measured(figures):
        first = next(iter(case["sides"].values()))["seconds"]["median"]
        label, before = "  and backward" if before == case["op"] else case["name"].removesuffix(", forward"), case["op"]
        for place, (name, side) in enumerate(case["sides"].items()):
            median = side["seconds"]["median"]
            yield (
                "" if place else label,
                name,
                f"{median * 1000:,.3f}" if median < 0.1 else f"{median * 1000:,.0f}",
                f"{median / first:,.2f}" if place else "",
                f"{side['flops_per_second'] / 1e9:,.1f}",
                f"{side['bytes_per_second'] / 1e9:,.1f}",
                f"{side['share_of_roofline']:.1%}",
                case["bound"],
            )


def measured(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """The cases that a backend has times of."""
    return [case for case in figures["cases"] if case["sides"]]


def failures(figures: dict[str, Any]) -> list[str]:
    """Which backends raised an error at which op, a line each."""
    cases = figures["cases"]
    return [f"{case['name']}, {name}: {why}" for case in cases for name, why in case.get("failed", {}).items()]


def write(figures: dict[str, Any], folder: Path) -> list[Path]:
    """Write result.json and kernels.png into `folder`."""
    return [write_result(figures, folder), draw(figures, folder / "kernels.png")]


def draw(figures: dict[str, Any], path: Path) -> Path:
    """The share of the roofline that nano3's own choice reaches, a bar an op; a tick where the next backend is."""
    cases = measured(figures)
    title = f"Kernels at the sizes of {figures['model']}: share of the roofline"
    conditions = f"{machine_text(figures['machine'])}, {figures['dtype']}"
    figure = new_figure(8, 1.4 + 0.28 * len(cases), title, conditions)
    axis = figure.subplots()
    labelled = set()
    for place, case in enumerate(reversed(cases)):
        (first, best), *others = case["sides"].items()
        axis.barh(place, 100 * best["share_of_roofline"], 0.7, color=BLUE)
        axis.annotate(
            f"{first}, {best['seconds']['median'] * 1000:,.3g} ms", (100 * best["share_of_roofline"], place), (4, 0),
            textcoords="offset points", va="center", fontsize=7, color=MUTED,
        )  # fmt: skip
        for name, side in others[:1]:
            label = None if labelled else "the next backend"
            labelled.add(name)
            axis.plot([100 * side["share_of_roofline"]], [place], "|", color=ORANGE, markersize=9, mew=2, label=label)
    axis.set_yticks(range(len(cases)), [case["name"] for case in reversed(cases)], fontsize=8)
    axis.set_ylim(-0.6, len(cases) - 0.4)
    axis.set_xlim(0, max([100, *(112 * next(iter(case["sides"].values()))["share_of_roofline"] for case in cases)]))
    axis.set_xlabel("% of what the measured ceilings allow", color=MUTED, fontsize=9)
    if labelled:
        axis.legend(frameon=False, fontsize=8, loc="lower right")
    plain(axis, grid="x")
    figure.savefig(path)
    return path
