"""Requests whose tokens were timed -> throughput, and what each user sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nano3.bench.serving_client import Sample
from nano3.bench.serving_report import distribution, latencies


def figures(samples: Sequence[Sample], seconds: float) -> dict[str, Any]:
    """Tokens a second and latencies of whole answers, over the time from the first request to the last answer's end.

    A user's tokens a second are one over the mean time per output token: what comes after the first one.
    `cached_prompt_tokens` are those that were not computed; None where nobody tells.
    """
    whole = [sample for sample in samples if not sample.error]
    output = sum(sample.tokens for sample in whole)
    prompt = sum(sample.prompt_tokens or 0 for sample in whole)
    cached = [sample.cached_tokens for sample in whole if sample.cached_tokens is not None]
    found = {name: distribution(values) for name, values in latencies(whole).items()}
    each = found["per_output_token_s"]
    return {
        "requests": len(samples),
        "completed": len(whole),
        "prompt_tokens": prompt,
        "cached_prompt_tokens": sum(cached) if cached else None,
        "output_tokens": output,
        "output_tokens_per_second": output / seconds,
        "total_tokens_per_second": (prompt + output) / seconds,
        "tokens_per_second_per_user": 1 / each["mean"] if each and each["mean"] else None,
        "latency": found,
    }
