"""Tables and chart of `nano3 bench throughput`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nano3.bench import compute_report
from nano3.bench.compute import OURS, Measured
from nano3.bench.compute_chart import COLORS, threads_text
from nano3.bench.throughput.measure import Load, Search
from nano3.report import INK, MUTED, new_figure, plain, write_result


def summary(measured: Measured, cpu: str, load: Load, search: Search) -> dict[str, Any]:
    """compute_report.summary, with the load and what `auto` found."""
    found = compute_report.summary(measured, cpu)
    return found | {"load": {"isl": load.isl, "osl": load.osl}, "auto": search.as_dict(), "notes": []}


def rate_rows(figures: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """At a time, side, output and all tokens a second, those of a user, ratio, peak memory."""
    for case, name, side in _sides(figures):
        if "latency" not in side:
            yield f"{case['batch']:,}", name, "-", "-", "-", "-", "-"
            continue
        ratio, user = case["ratios"].get(name), side["tokens_per_second_per_user"]
        yield (
            f"{case['batch']:,}",
            name,
            f"{side['output_tokens_per_second']:,.1f}",
            f"{side['total_tokens_per_second']:,.1f}",
            f"{user:,.1f}" if user else "-",
            f"{ratio['median']:.2f}" if ratio else "",
            _peak(side),
        )


def _peak(side: dict[str, Any]) -> str:
    """Of the GPU where the side computes there and tells, else of its process."""
    if "device_peak_bytes" in side:
        return f"{side['device_peak_bytes'] / 2**30:.2f} GiB (GPU)"
    return f"{side['peak_memory_bytes'] / 2**30:.2f} GiB" if side.get("peak_memory_bytes") else "-"


def latency_rows(figures: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """At a time, side; milliseconds to the first token and between tokens: mean, and within which 99 of 100 came."""
    for case, name, side in _sides(figures):
        if "latency" in side:
            kinds = [side["latency"][kind] for kind in ("first_token_s", "inter_token_s")]
            times = [f"{kind[key] * 1000:,.1f}" if kind else "-" for kind in kinds for key in ("mean", "p99")]
            yield f"{case['batch']:,}", name, *times


def use_lines(figures: dict[str, Any]) -> Iterator[str]:
    """nano3's use of the machine, a line a case: arithmetic of the whole, reading of a decoding step."""
    for case in figures["cases"]:
        side = case["sides"].get(OURS, {})
        if "share_of_matmul" not in side:
            continue
        rate = compute_report.scaled(side["flops_per_second"])
        line = f"{case['name']}: {rate}FLOP/s, {side['share_of_matmul']:.1%} of a matmul"
        if "share_of_read" in side:
            read = compute_report.scaled(side["read_bytes_per_second"])
            line += f"; a decoding step reads {read}B/s, {side['share_of_read']:.1%} of the best"
        yield line


def auto_text(figures: dict[str, Any]) -> str:
    """What `auto` chose and from what; empty where it was not asked."""
    found = figures["auto"]
    if not found:
        return ""
    tried = ", ".join(f"{p['concurrency']}: {p['reckoned_output_tokens_per_second']:,.0f}" for p in found["probes"])
    fit = f" of {found['fits']:,} that fit in {found['memory_bytes'] / 2**20:,.0f} MiB" if "fits" in found else ""
    return f"{found['chosen']} at a time{fit}; output tokens/s reckoned from short runs: {tried}"


def _sides(figures: dict[str, Any]) -> Iterator[tuple[dict, str, dict]]:
    for case in figures["cases"]:
        yield from ((case, name, side) for name, side in case["sides"].items())


def write(figures: dict[str, Any], folder: Path) -> list[Path]:
    """Write result.json and throughput.png into `folder`."""
    return [write_result(figures, folder), draw(figures, folder / "throughput.png")]


def draw(figures: dict[str, Any], path: Path) -> Path:
    """Output tokens a second by requests at a time, and what a user gets of them: lines, or bars of one case."""
    load, machine = figures["load"], figures["machine"]
    title = f"Throughput, {figures['model']}: {load['isl']:,} tokens in, {load['osl']:,} out"
    where = machine["cpu"] + (f", {threads_text(machine['threads'])}" if machine["threads"] else "")
    figure = new_figure(10, 4.2, title, where)
    left, right = figure.subplots(1, 2)
    if len(figures["cases"]) == 1:
        _bars(left, figures["cases"][0], "output_tokens_per_second", "output tokens/s")
        _bars(right, figures["cases"][0], "tokens_per_second_per_user", "tokens/s of a user")
    else:
        _lines(left, right, figures["cases"])
    figure.savefig(path)
    return path


def _bars(axis: Any, case: dict[str, Any], key: str, label: str) -> None:
    """One rate of every side at one number of requests at a time."""
    rates = {name: side[key] or 0.0 for name, side in case["sides"].items() if "latency" in side}
    for place, ((_, rate), color) in enumerate(zip(rates.items(), COLORS * 2, strict=False)):
        axis.bar(place, rate, 0.6, color=color)
        axis.annotate(f"{rate:,.4g}", (place, rate), (0, 3), textcoords="offset points", ha="center", color=INK)
    axis.set_xticks(range(len(rates)), [name.replace(" ", "\n") for name in rates], fontsize=8)
    axis.set_xlim(-0.7, max(1, len(rates)) - 0.3)
    axis.set_ylim(0, 1.15 * max(rates.values(), default=1.0) or 1.0)
    axis.set_title(f"{label}, {case['name']}", fontsize=10, color=INK, loc="left")
    plain(axis)


def _lines(left: Any, right: Any, cases: list[dict[str, Any]]) -> None:
    """Output tokens a second over requests at a time, and over what a user gets."""
    for name, color in zip(cases[0]["sides"], COLORS * 2, strict=False):
        own = [(case["batch"], case["sides"][name]) for case in cases if "latency" in case["sides"][name]]
        rates = [side["output_tokens_per_second"] for _, side in own]
        users = [side["tokens_per_second_per_user"] or 0.0 for _, side in own]
        left.plot([batch for batch, _ in own], rates, color=color, marker="o", markersize=5, label=name)
        right.plot(users, rates, color=color, marker="o", markersize=5, label=name)
        for (batch, _), user, rate in zip(own, users, rates, strict=True):
            right.annotate(f"{batch}", (user, rate), (5, 4), textcoords="offset points", fontsize=8, color=MUTED)
    batches = [case["batch"] for case in cases]
    left.set_xscale("log", base=2)
    left.set_xticks(batches, [f"{batch:,}" for batch in batches])
    left.set_xticks([], minor=True)
    left.set_xlabel("requests at a time", color=MUTED, fontsize=9)
    right.set_xlabel("tokens/s of a user (beside the points: requests at a time)", color=MUTED, fontsize=9)
    for axis in (left, right):
        axis.set_ylim(0, None)
        axis.set_ylabel("output tokens/s", color=MUTED, fontsize=9)
        plain(axis)
    right.set_xlim(0, None)
    left.legend(frameon=False, fontsize=8)
