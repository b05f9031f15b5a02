"""What the peers have in common: a clock, and the figures of requests that go together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from nano3.bench.serving_client import Sample
from nano3.bench.throughput.figures import figures
from nano3.bench.workload import Case

WARM_TOKENS = 4
"""Tokens of each sequence before the clock starts."""


def seconds_of(run: Callable[[], object]) -> float:
    """How long one run takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def lockstep(began: float, times: Sequence[float], case: Case, rows: int) -> list[Sample]:
    """Requests of one batch, whose tokens came at the same times."""
    one = Sample(began, times[-1], list(times), prompt_tokens=case.length, output_tokens=len(times))
    return [one] * rows


def timed(samples: Sequence[Sample], seconds: float) -> dict[str, Any]:
    """What a side answers of a run of whole requests."""
    return {"seconds": seconds, "details": figures(samples, seconds)}
