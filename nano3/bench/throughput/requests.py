"""Requests through a generation engine, so many under way at a time, each token timed."""

from __future__ import annotations

import time
from collections.abc import Sequence

from nano3.bench.serving_client import Sample
from nano3.bench.workload import Case
from nano3.engine.protocol import GenerationEngine
from nano3.engine.request import Request, Sampling


def run_requests(engine: GenerationEngine, given: Sequence[Sequence[int]], case: Case) -> list[Sample]:
    """All prompts, `case.batch` under way at a time: where one is done the next is sent. Greedy, no early end."""
    sampling = Sampling(temperature=0.0, max_tokens=case.output, ignore_eos=True)
    samples: list[Sample] = []
    left = iter(given)

    def send() -> bool:
        prompt = next(left, None)
        if prompt is None:
            return False
        samples.append(Sample(time.perf_counter(), prompt_tokens=len(prompt), output_tokens=0))
        engine.add(Request(str(len(samples) - 1), tuple(prompt), sampling))
        return True

    under_way = sum(send() for _ in range(case.batch))
    while under_way:
        updates = engine.step()
        now = time.perf_counter()
        for update in updates:
            sample = samples[int(update.request_id)]
            sample.chunks += [now] * len(update.tokens)
            if update.finish is not None:
                sample.end, sample.output_tokens = now, len(sample.chunks)
                under_way += send() - 1
    return samples
