"""The measurement of `nano3 bench throughput`: how many requests at a time, then the runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nano3.bench.compute import Measured, Plan, measure
from nano3.bench.processes import Worker
from nano3.bench.throughput.auto import choose, probe_case
from nano3.bench.workload import Case
from nano3.config.errors import UserError

WORKER = "nano3.bench.throughput.side"
"""The module of nano3's own process."""
AUTO = "auto"


@dataclass(frozen=True)
class Load:
    """What is sent, and how many at a time."""

    isl: int = 8192
    """Tokens of each prompt."""
    osl: int = 16384
    """Tokens of each answer."""
    concurrency: tuple[int, ...] = ()
    """Requests under way at a time, one measurement each; none: the best is looked for."""
    requests: int = 0
    """In all; 0: as many as are under way at a time."""

    def __post_init__(self) -> None:
        if self.osl < 2:
            raise UserError(f"--osl is {self.osl}; it must be at least 2, or there is no time between tokens")
        if self.requests < 0:
            raise UserError(f"--requests is {self.requests}; it must be at least 1")

    def case(self, concurrency: int) -> Case:
        """The work at so many requests at a time."""
        if self.requests and self.requests < concurrency:
            raise UserError(f"--requests {self.requests} are fewer than --concurrency {concurrency} at a time")
        return Case("throughput", concurrency, self.isl, self.osl, requests=self.requests or concurrency)

    def cases(self) -> list[Case]:
        """Those of the numbers given."""
        return [self.case(concurrency) for concurrency in self.concurrency]


def read_concurrency(text: str) -> tuple[int, ...]:
    """`auto`, or numbers with commas between them. Raises UserError."""
    if text.strip().lower() == AUTO:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"--concurrency {text}: give auto, a number of requests, or several such as 1,8,32")
    return tuple(dict.fromkeys(int(part) for part in parts))


@dataclass
class Search:
    """What `auto` found."""

    fits: dict[str, int] = field(default_factory=dict)
    probes: list[dict[str, float]] = field(default_factory=list)
    chosen: int = 0

    def as_dict(self) -> dict[str, Any] | None:
        """For JSON; None where nothing was looked for."""
        return {**self.fits, "probes": self.probes, "chosen": self.chosen} if self.chosen else None


def measure_engine(plan: Plan, load: Load, say: Callable[[str], None]) -> tuple[Measured, Search]:
    """Run the load on nano3 and the plan's peers.

    Args:
        plan: without cases.

    Raises:
        UserError: a wrong input, or requests that do not fit in memory.
    """
    search = Search()
    small = probe_case(load.case(max(load.concurrency, default=load.requests or 1)), 1)
    plan = replace(plan, cases=load.cases(), warm=small, worker=WORKER)

    def decide(worker: Worker) -> Sequence[Case]:
        if load.concurrency:
            _refuse_too_many(worker, plan.cases)
            return plan.cases
        return [load.case(_search(worker, load, say, search))]

    return measure(plan, say, decide), search


def _refuse_too_many(worker: Worker, cases: Sequence[Case]) -> None:
    """Raise UserError before anything has run."""
    largest = max(cases, key=lambda case: case.batch)
    if largest.batch > worker.fits(largest)["fits"]:
        worker.run(largest)


def _search(worker: Worker, load: Load, say: Callable[[str], None], search: Search) -> int:
    case = replace(load, requests=0).case(1)
    search.fits = worker.fits(case)
    most = search.fits["fits"]
    if not most:
        worker.run(case)  # tells what does not fit

    def run(probe: Case) -> Mapping[str, Any]:
        return worker.run(probe)["details"]

    run(probe_case(case, 1))  # the first run pays for preparations
    most = min(most, load.requests) if load.requests else most
    search.chosen, search.probes = choose(run, case, most, say)
    say(f"auto: {search.chosen} of {search.fits['fits']} that fit")
    return search.chosen
