"""Table and chart of `nano3 bench scaling`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nano3.bench.compute_chart import COLORS, threads_text
from nano3.report import MUTED, new_figure, plain, write_result

TITLES = {"length": "tokens of a sequence", "batch": "sequences", "experts": "experts of a block"}
EACH = {"length": "token", "batch": "sequence", "experts": "expert"}


def axes(figures: dict[str, Any]) -> list[str]:
    """The axes that were measured, in their order."""
    return list(dict.fromkeys(case["axis"] for case in figures["cases"]))


def rows(figures: dict[str, Any], axis: str) -> Iterator[tuple[str, ...]]:
    """Value, side, ms, how many times those of the smallest value, tokens a second, peak memory, times that."""
    own = [case for case in figures["cases"] if case["axis"] == axis]
    for case in own:
        for name, side in case["sides"].items():
            if "seconds" not in side:
                yield f"{case['value']:,}", name, "-", "-", "-", "-", "-"
                continue
            seconds, peak = side["seconds"]["median"], side["peak_memory_bytes"]
            first = own[0]["sides"].get(name, {})
            known = "seconds" in first
            yield (
                f"{case['value']:,}",
                name,
                f"{seconds * 1000:,.1f}",
                f"{seconds / first['seconds']['median']:.2f}" if known else "-",
                f"{side['tokens_per_second']['median']:,.0f}",
                f"{peak / 2**30:.2f} GiB",
                f"{peak / first['peak_memory_bytes']:.2f}" if known else "-",
            )


def growth_lines(figures: dict[str, Any]) -> Iterator[str]:
    """How time and memory grow over each axis, a line a side."""
    for axis, sides in figures["growth"].items():
        for name, each in sides.items():
            yield (
                f"{name}, {axis}: time grows with power {each['time']:.2f}, peak memory by "
                f"{each['bytes_each'] / 2**20:,.3g} MiB for each {EACH[axis]}"
            )


def write(figures: dict[str, Any], folder: Path) -> list[Path]:
    """Write result.json and scaling.png into `folder`."""
    return [write_result(figures, folder), draw(figures, folder / "scaling.png")]


def draw(figures: dict[str, Any], path: Path) -> Path:
    """Time and peak memory over each axis, both scales logarithmic; dashed: in proportion to the first point."""
    shown, machine = axes(figures), figures["machine"]
    title = f"Scaling, {figures['work']}, {figures['model']}"
    where = f"{machine['cpu']}, {threads_text(machine['threads'])}"
    figure = new_figure(1.2 + 3.6 * len(shown), 6.4, title, where)
    grid = figure.subplots(2, len(shown), squeeze=False)
    for column, axis in enumerate(shown):
        own = [case for case in figures["cases"] if case["axis"] == axis]
        _panel(grid[0][column], own, lambda side: side["seconds"]["median"] * 1000, "ms")
        _panel(grid[1][column], own, lambda side: side["peak_memory_bytes"] / 2**20, "peak memory, MiB")
        grid[1][column].set_xlabel(TITLES[axis], color=MUTED, fontsize=9)
    grid[0][0].legend(frameon=False, fontsize=8)
    figure.savefig(path)
    return path


def _panel(axis: Any, cases: list[dict[str, Any]], value: Any, label: str) -> None:
    for name, color in zip(cases[0]["sides"], COLORS * 2, strict=False):
        done = [case for case in cases if "seconds" in case["sides"][name]]
        if not done:
            continue
        places, heights = [case["value"] for case in done], [value(case["sides"][name]) for case in done]
        axis.plot(places, heights, color=color, marker="o", markersize=4, label=name)
        straight = [heights[0] * place / places[0] for place in places]
        axis.plot(places, straight, color=color, linestyle="--", linewidth=0.8, alpha=0.6)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    values = [case["value"] for case in cases]
    axis.set_xticks(values, [f"{each:,}" for each in values], fontsize=8)
    axis.set_xticks([], minor=True)
    axis.yaxis.set_major_formatter(lambda height, _: f"{height:,.4g}")
    axis.set_ylabel(label, color=MUTED, fontsize=9)
    plain(axis)
