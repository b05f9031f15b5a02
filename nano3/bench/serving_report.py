"""Figures and chart of a measured load."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from nano3.bench.serving import Measurement
from nano3.bench.serving_client import Sample, error_kinds
from nano3.files import write_atomic
from nano3.report import BLUE, GREEN, INK, MUTED, ORANGE, new_figure, plain

PERCENTILES = (50, 90, 99)
LATENCIES = {
    "first_token_s": "time to first token",
    "inter_token_s": "inter-token latency",
    "per_output_token_s": "time per output token",
    "end_to_end_s": "end to end",
}


def summary(measured: Measurement) -> dict[str, Any]:
    """All figures as one JSON object: seconds, tokens a second, counts. Latencies are of whole answers only."""
    whole = [sample for sample in measured.samples if not sample.error]
    seconds = measured.seconds
    output = sum(sample.tokens for sample in whole)
    prompt, cached = _total(whole, "prompt_tokens"), _total(whole, "cached_tokens")
    pieces = sum(len(sample.chunks) for sample in whole)
    mean, peak = concurrency(measured.samples, seconds)
    return {
        "url": measured.target.url,
        "model": measured.target.model,
        "endpoint": measured.target.endpoint,
        "workload": asdict(measured.workload),
        "requests": len(measured.samples),
        "completed": len(whole),
        "errors": error_kinds(measured.samples),
        "error_examples": _examples(measured.samples),
        "seconds": seconds,
        "requests_per_second": len(whole) / seconds,
        "output_tokens": output,
        "prompt_tokens": prompt,
        "cached_prompt_tokens": cached,
        "output_tokens_per_second": output / seconds,
        "total_tokens_per_second": None if prompt is None else (prompt + output) / seconds,
        "tokens_per_piece": output / pieces if pieces else None,
        "concurrency": {"mean": mean, "peak": peak},
        "latency": {name: distribution(values) for name, values in latencies(whole).items()},
        "notes": measured.notes,
    }


def latencies(whole: Sequence[Sample]) -> dict[str, list[float]]:
    """Seconds of each kind, over all answers together.

    Inter-token latency is between pieces of a stream (a piece may hold several tokens); time per output token is that
    from the first piece to the last over the tokens after the first, once an answer.
    """
    spans = [(s.chunks[-1] - s.chunks[0]) / (s.tokens - 1) for s in whole if len(s.chunks) > 1 and s.tokens > 1]
    return {
        "first_token_s": [s.first_token for s in whole if s.first_token is not None],
        "inter_token_s": [gap for s in whole for gap in s.gaps],
        "per_output_token_s": spans,
        "end_to_end_s": [s.end - s.start for s in whole],
    }


def distribution(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, percentiles and extremes; None of nothing."""
    if not values:
        return None
    cuts = np.percentile(values, PERCENTILES)
    named = {f"p{percent}": float(cut) for percent, cut in zip(PERCENTILES, cuts, strict=True)}
    return {"mean": float(np.mean(values)), **named, "min": min(values), "max": max(values)}


def concurrency(samples: Sequence[Sample], seconds: float) -> tuple[float, int]:
    """Mean and largest number of requests that were under way at once."""
    changes = sorted([(s.start, 1) for s in samples] + [(s.end, -1) for s in samples])
    now = peak = 0
    for _, change in changes:
        now += change
        peak = max(peak, now)
    return sum(s.end - s.start for s in samples) / seconds, peak


def rows(figures: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What the command line shows above the table of latencies."""
    yield "requests", f"{figures['completed']:,} answered of {figures['requests']:,} in {figures['seconds']:.2f} s"
    yield "requests a second", f"{figures['requests_per_second']:.2f}"
    yield (
        "under way at once",
        f"{figures['concurrency']['mean']:.1f} on average, {figures['concurrency']['peak']} at most",
    )
    yield "output tokens", f"{figures['output_tokens']:,}, {figures['output_tokens_per_second']:,.1f} a second"
    if figures["prompt_tokens"] is not None:
        cached = figures["cached_prompt_tokens"]
        part = f", {cached:,} of them from the cache" if cached is not None else ""
        yield "prompt tokens", f"{figures['prompt_tokens']:,}{part}"
        yield "all tokens a second", f"{figures['total_tokens_per_second']:,.1f}"
    for kind, count in figures["errors"].items():
        example = figures["error_examples"].get(kind)
        yield f"failed: {kind}", f"{count:,}" + (f", e.g. {example}" if example else "")


def write(measured: Measurement, figures: dict[str, Any], folder: Path) -> list[Path]:
    """Write result.json, requests.jsonl (a line a request) and, if any answer is whole, latency.png into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    result, requests = folder / "result.json", folder / "requests.jsonl"
    write_atomic(result, json.dumps(figures, indent=2, default=str) + "\n")
    start = measured.samples[0].start
    write_atomic(requests, "".join(json.dumps(_line(sample, start)) + "\n" for sample in measured.samples))
    whole = [sample for sample in measured.samples if not sample.error]
    if not whole:
        return [result, requests]
    return [result, requests, draw(whole, folder / "latency.png")]


def draw(whole: Sequence[Sample], path: Path) -> Path:
    """Chart of what share came within which time: of first tokens, of gaps between tokens, of whole answers."""
    figure = new_figure(14.4, 3.9, "Latency", title_size=13)
    found = latencies(whole)
    shown = (("first_token_s", BLUE), ("inter_token_s", ORANGE), ("end_to_end_s", GREEN))
    for axis, (name, color) in zip(figure.subplots(1, len(shown)), shown, strict=True):
        _cumulative(axis, found[name], LATENCIES[name], color)
    figure.savefig(path)
    return path


def _cumulative(axis: Any, values: Sequence[float], label: str, color: str) -> None:
    milliseconds = np.sort(np.asarray(values, dtype=float)) * 1000
    share = np.arange(1, len(milliseconds) + 1) / max(1, len(milliseconds)) * 100
    axis.step([0, *milliseconds], [0, *share], where="post", color=color, linewidth=1.8)
    if len(milliseconds):
        for percent in (50, 99):
            at = float(np.percentile(milliseconds, percent))
            style = "--" if percent == 50 else ":"
            axis.axvline(at, color=MUTED, linewidth=1.2, linestyle=style)
        half, most = np.percentile(milliseconds, (50, 99))
        # Above the axes, where neither a line nor the frame crosses it.
        found = f"p50 {half:.4g} ms (dashed), p99 {most:.4g} ms (dotted)"
        axis.set_title(found, fontsize=8.5, color=MUTED, loc="right")
        # Room for the last step, which is the end of the line.
        axis.set_xlim(0, 1.06 * max(float(milliseconds[-1]), 1e-3))
    axis.set_title(label, fontsize=10, color=INK, loc="left")
    axis.set_xlabel("milliseconds", color=INK)
    axis.set_ylabel("% within", color=INK)
    axis.set_ylim(0, 104)
    plain(axis, grid="both")


def _total(samples: Sequence[Sample], name: str) -> int | None:
    """Sum of a count, None where the server does not report it."""
    known = [value for sample in samples if (value := getattr(sample, name)) is not None]
    return sum(known) if known else None


def _examples(samples: Sequence[Sample]) -> dict[str, str]:
    """One message for each kind of failure that has one."""
    return {sample.error: sample.detail for sample in reversed(samples) if sample.error and sample.detail}


def _line(sample: Sample, start: float) -> dict[str, Any]:
    """One request for requests.jsonl; times in seconds from the first request."""
    return {
        "sent_s": sample.start - start,
        "first_token_s": sample.first_token,
        "end_to_end_s": sample.end - sample.start,
        "prompt_tokens": sample.prompt_tokens,
        "output_tokens": sample.tokens,
        "cached_tokens": sample.cached_tokens,
        "finish": sample.finish,
        "error": sample.error,
        "gaps_s": sample.gaps,
    }
