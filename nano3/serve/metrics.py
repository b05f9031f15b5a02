"""Prometheus metrics of the server and its engine, in a registry of their own."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from nano3.engine.protocol import Stats
from nano3.engine.request import Update
from nano3.serve.engine_thread import EngineThread
from nano3.serve.stream import Stream

LOG = logging.getLogger("nano3.serve")
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
GAUGES = {
    "running": "Sequences being computed.",
    "waiting": "Sequences in the engine's queue.",
    "pages": "Pages of the attention cache.",
    "pages_used": "Pages in use, by sequences and by the prefix cache.",
    "slots": "State slots.",
    "slots_used": "State slots in use, by sequences and by the prefix cache.",
}
COUNTERS = {
    "prompt_tokens": "Prompt tokens taken in.",
    "cached_tokens": "Prompt tokens that came from the prefix cache.",
    "computed_tokens": "Tokens that went through the model, recomputed ones included.",
    "output_tokens": "Tokens generated.",
    "preemptions": "Times a sequence lost its memory to another.",
    "cache_queries": "Prompts looked up in the prefix cache.",
    "cache_hits": "Prompts of which the prefix cache had a part.",
    "drafted_tokens": "Tokens proposed by speculation.",
    "accepted_tokens": "Proposed tokens that the model agreed with.",
}

# A time of creation beside every series would double the text; nobody asks for it.
disable_created_metrics()


class Metrics:
    """What /metrics shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "nano3_http_requests", "Answered requests.", ("method", "route", "status"), registry=self.registry
        )
        self.first_token = self._histogram(
            "nano3_time_to_first_token_seconds", "From a request's arrival to its first token.", SECONDS
        )
        self.between_tokens = self._histogram(
            "nano3_inter_token_latency_seconds", "Between two tokens of one output.", TOKEN_SECONDS
        )
        self.whole = self._histogram(
            "nano3_request_latency_seconds", "From a request's arrival to the end of an output.", SECONDS
        )
        self.finished = Counter(
            "nano3_finished_outputs", "Outputs that ended, by reason.", ("reason",), registry=self.registry
        )

    def watch(self, thread: EngineThread) -> None:
        """Show the counters of this engine."""
        self.registry.register(_EngineCollector(thread))

    def on_update(self, stream: Stream, update: Update, now: float) -> None:
        """Observer of an EngineThread."""
        stream.produced[update.index] += len(update.tokens)
        if update.tokens:
            last = stream.last_at.get(update.index)
            if last is None:
                self.first_token.observe(now - stream.submitted)
            else:
                # Tokens that came in one step share the time since the step before.
                for _ in update.tokens:
                    self.between_tokens.observe((now - last) / len(update.tokens))
        if update.finish is not None:
            self.whole.observe(now - stream.submitted)
            self.finished.labels(update.finish).inc()
            LOG.info(
                "%s output %d: %d prompt tokens, %d output tokens, %.2f s, %s", update.request_id, update.index,
                stream.prompt_tokens, stream.produced[update.index], now - stream.submitted, update.finish,
            )  # fmt: skip

    def text(self) -> bytes:
        """The exposition, in Prometheus' text format."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, help_text, buckets=buckets, registry=self.registry)


class _EngineCollector(Collector):
    """Reads the engine's counters when they are asked for."""

    def __init__(self, thread: EngineThread) -> None:
        self._thread = thread

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        stats: Stats = self._thread.stats()
        for name, text in GAUGES.items():
            yield GaugeMetricFamily(f"nano3_{name}", text, getattr(stats, name))
        for name, text in COUNTERS.items():
            yield CounterMetricFamily(f"nano3_{name}", text, getattr(stats, name))
        yield GaugeMetricFamily("nano3_queued", "Sequences submitted and not being computed.", self._thread.queued)
        yield GaugeMetricFamily("nano3_ready", "1 while requests are taken.", int(self._thread.ready))
        yield CounterMetricFamily("nano3_aborted_requests", "Requests dropped before their end.", self._thread.aborted)
