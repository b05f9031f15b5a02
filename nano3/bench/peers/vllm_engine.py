"""vLLM, on a machine that has it."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from nano3.bench.peers.timing import WARM_TOKENS, timed
from nano3.bench.serving_client import Sample
from nano3.bench.throughput.requests import run_requests
from nano3.bench.workload import Case, Job, prompts


class Vllm:
    """vLLM through nano3's engine on it, from a Hugging Face folder; see nano3.bench.worker."""

    def __init__(self, job: Job) -> None:
        import vllm

        self.job, self.version = job, vllm.__version__
        self.engine: Any = None
        self.room = (0, 0)

    def about(self) -> dict[str, Any]:
        """Version and types."""
        return {"version": self.version, "weights": self.job.dtype, "activations": self.job.dtype}

    def run(self, case: Case) -> dict[str, Any]:
        """All requests of a case; the engine is opened anew where it is too small."""
        room = case.batch, case.length + case.output
        if any(wanted > has for wanted, has in zip(room, self.room, strict=True)):
            self._open(room)
            # The first work of a new engine pays for its preparations, here and not in what is measured.
            self._timed(replace(case, output=min(case.output, WARM_TOKENS), requests=0))
        return timed(*self._timed(case))

    def _timed(self, case: Case) -> tuple[list[Sample], float]:
        given = prompts(case, self.engine.tokenizer.vocab_size)
        start = time.perf_counter()
        samples = run_requests(self.engine, given, case)
        return samples, time.perf_counter() - start

    def _open(self, room: tuple[int, int]) -> None:
        from nano3.engine.vllm.engine import VllmEngine

        if self.engine is not None:
            self.engine.close()
        self.room = room
        self.engine = VllmEngine(
            self.job.model, dtype=self.job.dtype, max_sequences=room[0], max_context=room[1], prefix_cache=False
        )
