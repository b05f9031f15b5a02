"""nano3's side of `nano3 bench throughput`; `python -m nano3.bench.throughput.side` is its worker."""

from __future__ import annotations

import time
from typing import Any

import torch

from nano3.bench.native import Native
from nano3.bench.throughput.figures import figures
from nano3.bench.throughput.requests import run_requests
from nano3.bench.worker import serve
from nano3.bench.workload import Case, Job, prompts
from nano3.config.errors import UserError
from nano3.engine.engine import Engine
from nano3.engine.sizing import bytes_of_page, memory_beside
from nano3.model.state.pool import slot_bytes

PAGE = 64
SHARE = 0.8
"""Part of the free memory, after the weights, that sequences may take: the rest is for computing."""


class EngineSide(Native):
    """Whole requests through the engine; see nano3.bench.worker."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.memory = job.memory or int(SHARE * memory_beside(self.device, self.model.mapped_bytes))

    def about(self) -> dict[str, Any]:
        """Also the device and the memory for sequences."""
        return super().about() | {"device": str(self.device), "memory_bytes": self.memory}

    def sequence_bytes(self, case: Case) -> int:
        """Of the states, keys, values and experts of one request at its end."""
        cfg, dtype = self.model.cfg, self.model.compute_dtype
        pages = -(-(case.length + case.output) // PAGE)
        return slot_bytes(cfg, dtype) + pages * bytes_of_page(cfg, PAGE, dtype)

    def fits(self, case: Case) -> dict[str, int]:
        """How many such requests there is memory for at once, and what one takes."""
        each = self.sequence_bytes(case)
        return {"fits": self.memory // each, "sequence_bytes": each, "memory_bytes": self.memory}

    def run(self, case: Case) -> dict[str, Any]:
        """Seconds, and `details` as nano3.bench.throughput.figures tells them.

        Raises:
            UserError: so many requests do not fit in memory.
        """
        room = self.fits(case)
        if case.batch > room["fits"]:
            need, there = (f"{n / 2**30:.2f} GiB" for n in (case.batch * room["sequence_bytes"], self.memory))
            raise UserError(
                f"--concurrency {case.batch}: so many requests of {case.length + case.output:,} tokens need {need}; "
                f"{there} are free for them; at most {room['fits']} fit: take fewer, shorter ones, or more --memory"
            )
        assert self.tokenizer is not None
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        engine = Engine(
            self.model, self.tokenizer, memory=case.batch * room["sequence_bytes"], max_sequences=case.batch,
            max_context=case.length + case.output, page_size=PAGE, prefix_cache=False,
        )  # fmt: skip
        try:
            given = prompts(case, self.model.cfg.vocab_size)
            start = time.perf_counter()
            samples = run_requests(engine, given, case)
            seconds = time.perf_counter() - start
        finally:
            engine.close()
        details = figures(samples, seconds)
        if on_gpu:
            details["device_peak_bytes"] = torch.cuda.max_memory_allocated(self.device)
        return {"seconds": seconds, "details": details}


def main() -> None:
    """The process of this side."""
    serve(EngineSide)


if __name__ == "__main__":
    main()
