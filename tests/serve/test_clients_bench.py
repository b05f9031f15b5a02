"""`nano3 bench serve` against a running server: what it asked for is what it measured."""

from __future__ import annotations

import pytest

from nano3.bench.serving import Workload, measure
from nano3.bench.serving_client import Target
from nano3.bench.serving_prompts import Lengths
from nano3.bench.serving_report import summary


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_lengths_and_the_shared_prefix(server, endpoint):
    lengths = Lengths(prompt=40, output=12, spread=0, shared_prefix=200)
    workload = Workload(requests=10, concurrency=4, lengths=lengths, seed=5)
    figures = summary(measure(Target(server.url, endpoint), workload))
    assert figures["notes"] == []
    assert (figures["completed"], figures["errors"]) == (10, {})
    assert figures["model"] == server.model
    assert figures["output_tokens"] == 10 * 12
    # A template adds its own tokens to each prompt.
    assert 10 * 230 <= figures["prompt_tokens"] <= 10 * 300
    assert figures["cached_prompt_tokens"] >= 10 * 128
    assert figures["tokens_per_piece"] == pytest.approx(1, abs=0.5)
    times = figures["latency"]
    assert 0 < times["first_token_s"]["p50"] <= times["end_to_end_s"]["p50"]


def test_arrivals_at_a_rate(server):
    lengths = Lengths(prompt=20, output=4)
    figures = summary(measure(Target(server.url), Workload(requests=10, rate=50.0, lengths=lengths, seed=6)))
    assert figures["completed"] == 10
    assert figures["seconds"] >= 0.05
