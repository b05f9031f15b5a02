"""`--concurrency auto`: how many requests at a time give the most output tokens a second, of what fits in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nano3.bench.workload import Case

PROBE_PROMPT, PROBE_OUTPUT = 64, 16
"""Most tokens of a probe's prompts and answers."""
RUNS = 2
"""Of each probe; the better one counts."""
PATIENCE = 2
"""Probes in a row without a better one after which no larger number is tried."""


def candidates(fits: int) -> list[int]:
    """Powers of two that fit, and the largest number that does."""
    powers = [1 << i for i in range(fits.bit_length())]
    return list(dict.fromkeys([*powers, fits]))


def probe_case(case: Case, concurrency: int) -> Case:
    """The same work in short, `concurrency` at a time."""
    length, output = min(case.length, PROBE_PROMPT), max(2, min(case.output, PROBE_OUTPUT))
    return Case(case.kind, concurrency, length, output)


def reckon(details: Mapping[str, Any], probe: Case, case: Case) -> float:
    """Output tokens a second of the whole work, from a probe: its rate of prompt tokens, and its time of a step."""
    latency = details["latency"]
    prompts = latency["first_token_s"]["max"] * case.length / probe.length
    steps = latency["inter_token_s"]["mean"] * (case.output - 1)
    return probe.batch * case.output / (prompts + steps)


def choose(
    run: Callable[[Case], Mapping[str, Any]], case: Case, fits: int, say: Callable[[str], None]
) -> tuple[int, list[dict[str, float]]]:
    """The best number of requests at a time, and what each probe gave.

    Args:
        run: a probe -> its figures (nano3.bench.throughput.figures); empty: it failed, and no larger one is tried.
        case: the whole work, whose own `batch` counts for nothing.
        fits: most requests at a time, at least 1.
    """
    probes: list[dict[str, float]] = []
    best, since = 0, 0
    for concurrency in candidates(fits):
        probe = probe_case(case, concurrency)
        say(f"auto: {concurrency} at a time, in short")
        found = [details for _ in range(RUNS) if (details := run(probe))]
        if not found:
            break
        rate = max(reckon(details, probe, case) for details in found)
        probes.append({"concurrency": concurrency, "reckoned_output_tokens_per_second": rate})
        since = 0 if rate > probes[best]["reckoned_output_tokens_per_second"] or len(probes) == 1 else since + 1
        best = len(probes) - 1 if since == 0 else best
        if since == PATIENCE:
            break
    return int(probes[best]["concurrency"]) if probes else 1, probes
