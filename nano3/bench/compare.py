"""Two results of a bench side by side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.reading import read_json

MACHINE = ("cpu", "threads", "device", "torch")
KINDS = ("train", "prefill", "decode", "rl", "throughput", "kernels", "scaling")
FASTER, SLOWER, WITHIN = "faster", "slower", "within the spread"


def read_result(path: Path) -> dict[str, Any]:
    """A result.json, or that of a folder of --out.

    Raises:
        UserError: no such file, or no result of these measurements.
    """
    file = path / "result.json" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file}: no such file; give a result.json of nano3 bench, or its folder")
    found = read_json(file)
    if not isinstance(found, dict) or found.get("kind") not in KINDS:
        raise UserError(f"{file}: is no result of nano3 bench {', '.join(KINDS)}")
    try:
        for case in found["cases"]:
            [rate(side)["median"] for side in case["sides"].values() if "failed" not in side]
            _ = case["name"]
        _ = (found["model"], found["machine"]["cpu"], found["machine"]["threads"])
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{file}: is no whole result of nano3 bench; measure again") from None
    return found


def rate(side: dict[str, Any]) -> dict[str, float]:
    """Tokens a second of one side, of an op calls a second: median, least and most."""
    if "tokens_per_second" in side:
        return {key: float(side["tokens_per_second"][key]) for key in ("median", "min", "max")}
    seconds = side["seconds"]
    return {key: 1 / seconds[of] for key, of in (("median", "median"), ("min", "max"), ("max", "min"))}


def compare(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What two results say of the cases and sides that both have.

    A ratio is that of the medians, its least that of the slowest run after to the fastest before, its most the other
    way round. `after` is faster or slower only where all its runs are; one run on a side proves neither.

    Raises:
        UserError: results of two kinds, or without a case in common.
    """
    if before["kind"] != after["kind"]:
        raise UserError(f"the one is of bench {before['kind']}, the other of {after['kind']}: compare like with like")
    earlier = {_work(before, case): case for case in before["cases"]}
    pairs = [(earlier[work], case) for case in after["cases"] if (work := _work(after, case)) in earlier]
    rows = [row for was, now in pairs for row in _rows(was, now)]
    if not rows:
        raise UserError("the two have no case in common: measure the same lengths and numbers of sequences")
    return {"kind": after["kind"], "differences": list(_differences(before, after)), "rows": rows}


def _work(result: dict[str, Any], case: dict[str, Any]) -> tuple:
    """What makes two cases the same: not only their name, but all that was to be done."""
    sizes = (case.get(key) for key in ("length", "output", "group", "requests", "forward_only", "shapes"))
    return case["name"], result.get("work"), str(result.get("fixed")), *sizes


def _rows(before: dict[str, Any], after: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, side in after["sides"].items():
        other = before["sides"].get(name, {"failed": "missing"})
        if "seconds" not in side or "seconds" not in other:
            continue
        was, now = rate(other), rate(side)
        pairs = (("median", "median"), ("min", "max"), ("max", "min"))
        ratio = {key: now[key] / was[other_end] for key, other_end in pairs}
        several = min(len(each.get("seconds", {}).get("all", ())) for each in (side, other)) > 1
        yield {"case": after["name"], "side": name, "before": was, "after": now, "ratio": ratio,
               "verdict": _verdict(ratio) if several else "one run proves nothing"}  # fmt: skip


def _verdict(ratio: dict[str, float]) -> str:
    return FASTER if ratio["min"] > 1 else SLOWER if ratio["max"] < 1 else WITHIN


def _differences(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """What else differs, so that speed is not laid at the wrong door."""
    pairs = {name: (before["machine"].get(name) or "", after["machine"].get(name) or "") for name in MACHINE}
    pairs |= {name: (before.get(name), after.get(name)) for name in ("model", "pattern", "dtype", "seed", "repeat")}
    sides = sorted(before.get("sides", {}).keys() & after.get("sides", {}).keys())
    for side in sides:
        for key in ("version", "weights", "activations"):
            pairs[f"{side}: {key}"] = (before["sides"][side].get(key), after["sides"][side].get(key))
    for name, (was, now) in pairs.items():
        if was != now:
            yield f"{name}: {was} -> {now}"
