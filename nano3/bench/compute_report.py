"""Figures, table rows and chart of `nano3 bench train`, `prefill`, `decode` and `rl`."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from nano3.bench.ceilings import FIRST_KIB, MATMULS, READS, read_ceiling, unit
from nano3.bench.compute import CEILINGS, OURS, SINGLE, Measured, Runs
from nano3.bench.costs import flops, read_bytes
from nano3.bench.versions import versions
from nano3.bench.workload import SEED, Case
from nano3.config.model import ModelConfig
from nano3.model.count import count_parameters
from nano3.report import write_result

ONE_RUN = "one run"
"""Where a spread would stand."""
PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"))


def summary(measured: Measured, cpu: str) -> dict[str, Any]:
    """All figures as one JSON object: seconds, tokens a second, FLOP/s, bytes; shares and ratios as fractions.

    `cpu` is the processor's name.
    """
    plan, ours = measured.plan, measured.about[OURS]
    cfg = ModelConfig(**ours["config"])
    names = measured.ceilings[0] if measured.ceilings else ()
    ceilings = {name: {**spread([rates[name] for rates in measured.ceilings]), "unit": unit(name)} for name in names}
    cache = measured.about.get(CEILINGS, {}).get("cache_bytes", 0) if plan.device == "cpu" else 0
    pairs = zip(plan.cases, measured.runs, strict=True)
    return {
        "kind": plan.kind,
        "model": plan.model,
        "pattern": cfg.pattern,
        "parameters": asdict(count_parameters(cfg)),
        "machine": {
            "cpu": cpu,
            "threads": measured.threads,
            "device": "" if plan.device == "cpu" else ours["device"],
            "torch": torch.__version__,
            "cache_bytes": cache,
        },
        "versions": versions(),
        "seed": SEED,
        "repeat": plan.repeat,
        "sides": {
            name: {key: value for key, value in about.items() if key not in ("config", "backends")}
            for name, about in measured.about.items()
        },
        "backends": ours["backends"],
        "ceilings": ceilings,
        "cases": [_case(cfg, case, runs, ours, ceilings, cache) for case, runs in pairs],
        "profiles": measured.profiles,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _case(
    cfg: ModelConfig, case: Case, runs: dict[str, Runs], ours: dict, ceilings: dict, cache: int
) -> dict[str, Any]:
    sides = {name: _side(case, side) for name, side in runs.items()}
    mine = sides[OURS]
    mine |= _use(cfg, case, mine, ours, ceilings, cache)
    ratios = {name: _ratio(runs[OURS], side) for name, side in runs.items() if name != OURS and side.seconds}
    result = {"name": case.name, **asdict(case), "tokens": case.tokens, "sides": sides, "ratios": ratios}
    peers = [name for name in ratios if name != SINGLE]
    if peers:
        result["best_peer"] = min(peers, key=lambda name: ratios[name]["median"])
    return result


def _side(case: Case, runs: Runs) -> dict[str, Any]:
    if not runs.seconds:
        return {"failed": runs.failed}
    seconds = spread(runs.seconds)
    rates = {name: case.tokens / seconds[of] for name, of in (("median", "median"), ("min", "max"), ("max", "min"))}
    return {
        "seconds": {**seconds, "all": runs.seconds},
        "tokens_per_second": rates,
        "peak_memory_bytes": runs.peak_memory,
        **(details_of(runs) if runs.details else {}),
        **({"parts": _parts(case, runs)} if runs.parts else {}),
        **({"failed": runs.failed} if runs.failed else {}),
    }


def details_of(runs: Runs) -> dict[str, Any]:
    """The figures of the run that took the median time."""
    median = statistics.median_low(runs.seconds)
    return runs.details[runs.seconds.index(median)]


def _parts(case: Case, runs: Runs) -> dict[str, Any]:
    """Of drawing and of the update: seconds, tokens a second, and the share of a run's time, at the median."""
    whole = statistics.median(runs.seconds)
    medians = {name: statistics.median(seconds) for name, seconds in runs.parts.items()}
    return {
        name: {"seconds": median, "tokens_per_second": case.tokens / median, "share": median / whole}
        for name, median in medians.items()
    }


def _use(cfg: ModelConfig, case: Case, mine: dict, ours: dict, ceilings: dict, cache: int) -> dict[str, Any]:
    """Arithmetic and traffic at the median, and their shares of the best that the machine did in any round."""
    counted, seconds = flops(cfg, case), mine["seconds"]["median"]
    rate = counted / seconds
    use: dict[str, Any] = {"flops": counted, "flops_per_second": rate}
    if not ceilings:
        return use
    best = max(ceilings[name]["max"] for name in _products(ours) if name in ceilings)
    use["share_of_matmul"] = rate / best
    step = _step_seconds(case, mine)
    if step:
        activations = getattr(torch, ours["activations"])
        read = read_bytes(cfg, case, ours["bytes_each"], activations)
        name, best = read_ceiling(read, {name: each["max"] for name, each in ceilings.items()})
        use |= {
            "seconds_per_step": step,
            "read_bytes_per_step": read,
            "read_bytes_per_second": read / step,
            "read_ceiling": name,
            "share_of_read": read / step / best,
            "fits_cache": read <= cache,
        }
    return use


def _step_seconds(case: Case, mine: dict) -> float:
    """Of one decoding step, 0 where there are none; of requests that come together, the median between two tokens."""
    if case.kind == "throughput":
        found = mine["latency"]["inter_token_s"]
        return found["p50"] if found else 0.0
    return mine["seconds"]["median"] / case.output if case.kind == "decode" else 0.0


def _products(ours: dict) -> list[str]:
    """Ceilings of the products that the arithmetic may be: of the activations' type, and of integers where weights are
    of those."""
    integers = [MATMULS["int8"]] if ours.get("integers") else []
    return [MATMULS[ours["activations"]], *integers]


def _ratio(ours: Runs, peer: Runs) -> dict[str, float]:
    """How many times as fast as the peer: ratio of the medians; least and most of runs that were neighbours."""
    paired = [theirs / mine for mine, theirs in zip(ours.seconds, peer.seconds, strict=False)]
    median = statistics.median(peer.seconds) / statistics.median(ours.seconds)
    return {"median": median, "min": min(paired), "max": max(paired)}


def speed_rows(figures: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Lines of the table of speeds: case, side, tokens a second, spread, ratio, peak memory."""
    for case in figures["cases"]:
        for name, side in case["sides"].items():
            if "tokens_per_second" not in side:
                yield case["name"], name, "-", "-", "-", "-"
                continue
            rate, ratio = side["tokens_per_second"], case["ratios"].get(name)
            several = len(side["seconds"]["all"]) > 1
            times = f"{ratio['median']:.2f}" if ratio else ""
            yield (
                case["name"],
                name,
                f"{rate['median']:,.1f}",
                f"{rate['min']:,.1f} - {rate['max']:,.1f}" if several else ONE_RUN,
                f"{times} ({ratio['min']:.2f} - {ratio['max']:.2f})" if ratio and several else times,
                f"{side['peak_memory_bytes'] / 2**30:.2f} GiB",
            )


def part_rows(figures: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Lines of the table of parts: case, side, and of drawing and update tokens a second, share, and nano3's ratio."""
    for case in figures["cases"]:
        ours = case["sides"][OURS].get("parts", {})
        for name, side in case["sides"].items():
            row = [case["name"], name]
            for part, values in side.get("parts", {}).items():
                times = "" if name == OURS else f"{values['seconds'] / ours[part]['seconds']:.2f}"
                row += [f"{values['tokens_per_second']:,.0f}", f"{values['share']:.0%}", times]
            if len(row) > 2:
                yield tuple(row)


def failures(figures: dict[str, Any]) -> list[str]:
    """Which sides gave up where, and why, a line each."""
    sides = [(case["name"], name, side) for case in figures["cases"] for name, side in case["sides"].items()]
    return [f"{name}, {where}: {side['failed']}" for where, name, side in sides if "failed" in side]


def use_rows(figures: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Lines of the table of nano3's use of the machine: case, FLOP/s and share; when decoding ms a step and reading."""
    for case in figures["cases"]:
        side = case["sides"][OURS]
        row = (case["name"], f"{scaled(side['flops_per_second'])}FLOP/s", f"{side['share_of_matmul']:.1%}")
        if "seconds_per_step" in side:
            read = f"{scaled(side['read_bytes_per_second'])}B/s"
            row += (f"{side['seconds_per_step'] * 1000:.2f}", read, _read_share(side))
        yield row


def _read_share(side: dict[str, Any]) -> str:
    """Nothing for a model so small that no reading was measured that its weights could be held against."""
    return f"{side['share_of_read']:.1%}" if side["read_bytes_per_step"] >= FIRST_KIB << 10 else "-"


def shown_ceilings(figures: dict[str, Any]) -> list[str]:
    """Names of the ceilings to show: all but the sizes of reading that nothing was held against, the largest apart."""
    held = {case["sides"][OURS].get("read_ceiling") for case in figures["cases"]}
    measured = figures["ceilings"]
    largest = max((name for name in measured if name in READS), key=lambda name: READS[name], default="")
    return [name for name in measured if name not in READS or name in held or name == largest]


def cache_notes(figures: dict[str, Any]) -> list[str]:
    """What is read from a cache and not from memory, a line each."""
    cache = figures["machine"]["cache_bytes"]
    notes = []
    for case in figures["cases"]:
        side = case["sides"].get(OURS, {})
        read = side.get("read_bytes_per_step", 0)
        if side.get("fits_cache") and read >= FIRST_KIB << 10:
            notes.append(
                f"{case['name']}: the {read / 2**20:,.0f} MiB that a step reads fit the processor's cache of "
                f"{cache / 2**20:,.0f} MiB, and are held against reading as much over and over, not against memory"
            )
    largest = max((READS[name] for name in figures["ceilings"] if name in READS), default=0)
    if 0 < largest <= cache:
        notes.append(f"memory was too short for a buffer beyond that cache: the largest read was {largest >> 20} MiB")
    return notes


def scaled(value: float) -> str:
    """A rate with its prefix: `96.3 G`."""
    for size, prefix in PREFIXES:
        if value >= size:
            return f"{value / size:.1f} {prefix}"
    return f"{value:.1f} "


def write(figures: dict[str, Any], folder: Path) -> list[Path]:
    """Write result.json and speed.png into `folder`."""
    from nano3.bench.compute_chart import draw

    return [write_result(figures, folder), draw(figures, folder / "speed.png")]
