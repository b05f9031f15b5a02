"""Load on an OpenAI-compatible server, and what its users see: times to first and next tokens, throughput, errors."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx2

from nano3.bench.serving_client import Prompt, Sample, Target, find_model, send, settle_options
from nano3.bench.serving_prompts import Lengths, random_prompts, read_prompts
from nano3.config.errors import UserError

Progress = Callable[[int, int], None]
"""Called with requests finished and requests in all."""
LATE = 0.05
"""Seconds; a request sent so much after its time is worth a note."""


@dataclass(frozen=True)
class Workload:
    """What is sent to the server, and when."""

    requests: int = 100
    rate: float | None = None
    """Mean arrivals a second (a Poisson process, whatever is still under way)."""
    concurrency: int = 8
    """Requests under way at a time, where there is no rate."""
    lengths: Lengths = field(default_factory=Lengths)
    dataset: Path | None = None
    """JSONL file of prompts in place of random words."""
    warmup: int = 2
    """Requests before the clock starts."""
    seed: int = 0

    def __post_init__(self) -> None:
        positive = {"--requests": self.requests, "--concurrency": self.concurrency}
        positive |= {"--prompt-tokens": self.lengths.prompt, "--output-tokens": self.lengths.output}
        for name, value in positive.items():
            if value < 1:
                raise UserError(f"{name} is {value}; it must be 1 or more")
        for name, value in {"--warmup": self.warmup, "--shared-prefix": self.lengths.shared_prefix}.items():
            if value < 0:
                raise UserError(f"{name} is {value}; it must be 0 or more")
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise UserError(f"--rate is {self.rate:g}; it must be above 0 requests a second")
        if not 0 <= self.lengths.spread < 1:
            raise UserError(f"--spread is {self.lengths.spread:g}; it must be from 0 to below 1")


@dataclass
class Measurement:
    """All samples of a load, in the order in which they were sent."""

    target: Target
    workload: Workload
    samples: list[Sample]
    seconds: float
    """From the first request sent to the last answer's end."""
    notes: list[str]


def measure(target: Target, workload: Workload, progress: Progress = lambda done, total: None) -> Measurement:
    """Run a load and return what every request came to.

    Raises:
        UserError: the server cannot be reached, or already fails the first request.
    """
    return asyncio.run(_measure(target, workload, progress))


async def _measure(target: Target, workload: Workload, progress: Progress) -> Measurement:
    target = find_model(target)
    n_prompts = workload.requests + max(1, workload.warmup)
    if workload.dataset is None:
        prompts, notes = await random_prompts(target, workload.lengths, n_prompts, workload.seed)
    else:
        prompts, notes = read_prompts(workload.dataset, target, workload.lengths, n_prompts, workload.seed), []
    # The warm-up prompts come last: the measured ones are the same whatever their number.
    prompts, warmup = prompts[: workload.requests], prompts[workload.requests :]
    target, learned = await settle_options(target, replace(warmup[0], output_tokens=min(4, warmup[0].output_tokens)))
    notes += learned
    async with target.client() as client:
        await asyncio.gather(*(send(client, target, prompt) for prompt in warmup[: workload.warmup]))
        load = _Load(client, target, workload, prompts, progress)
        start = time.perf_counter()
        await (load.arrivals() if workload.rate else load.users())
    if load.late > LATE:
        notes.append(f"this client was up to {load.late * 1000:.0f} ms late with a request: its own machine is busy")
    samples = [load.samples[index] for index in range(workload.requests)]
    return Measurement(target, workload, samples, max(sample.end for sample in samples) - start, notes)


@dataclass
class _Load:
    """The prompts on their way to the server, and what has come of them."""

    client: httpx2.AsyncClient
    target: Target
    workload: Workload
    prompts: list[Prompt]
    progress: Progress
    samples: dict[int, Sample] = field(default_factory=dict)
    late: float = 0.0
    """Seconds that a request was sent after its time, at most."""

    async def users(self) -> None:
        """A fixed number of users, each with one request at a time."""
        queue = iter(range(len(self.prompts)))

        async def user() -> None:
            for index in queue:
                await self._one(index)

        await asyncio.gather(*(user() for _ in range(min(self.workload.concurrency, len(self.prompts)))))

    async def arrivals(self) -> None:
        """Users who come at random times, as many at once as there happen to be."""
        start = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for index, at in enumerate(arrival_times(self.workload)):
                await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
                self.late = max(self.late, time.perf_counter() - start - at)
                group.create_task(self._one(index))

    async def _one(self, index: int) -> None:
        self.samples[index] = await send(self.client, self.target, self.prompts[index])
        self.progress(len(self.samples), len(self.prompts))


def arrival_times(workload: Workload) -> list[float]:
    """Seconds from the start at which each request comes, the first at once: gaps are exponential, seeded."""
    assert workload.rate is not None
    rng = random.Random(f"arrivals {workload.seed}")
    times = [0.0]
    for _ in range(workload.requests - 1):
        times.append(times[-1] + rng.expovariate(workload.rate))
    return times
