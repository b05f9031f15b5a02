"""The same load on an OpenAI-compatible server, such as vLLM's or nano3's own."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from nano3.bench.compute_report import spread
from nano3.bench.serving import Workload
from nano3.bench.serving import measure as send_load
from nano3.bench.serving_client import Target, error_kinds, find_model
from nano3.bench.serving_prompts import Lengths
from nano3.bench.throughput.auto import choose
from nano3.bench.throughput.figures import figures
from nano3.bench.throughput.measure import Load, Search
from nano3.bench.versions import versions
from nano3.bench.workload import Case
from nano3.config.errors import UserError

MOST = 1024
"""Requests at a time up to which `auto` looks; a server does not say what fits in its memory."""
SIDE = "server"
SEED_BITS = 48
"""Of a random seed: two measurements of one server share no prompts."""


def measure_server(
    target: Target, load: Load, seed: int | None, cpu: str, say: Callable[[str], None]
) -> dict[str, Any]:
    """Figures as of nano3.bench.throughput.report.summary, with one side: the server.

    Prompts are random words of that many tokens, others in each run: a server may keep those that it has seen. Requests
    that failed are counted and are in no figure.

    Args:
        target: the server.
        load: what is sent.
        seed: of the first run's prompts, each later run has the next; None: a random one.
        cpu: this machine's.
        say: told what goes on.

    Raises:
        UserError: the server cannot be reached, or answers nothing.
    """
    seed = secrets.randbits(SEED_BITS) if seed is None else seed
    runs, search = _Runs(find_model(target), itertools.count(seed)), Search()
    target, cases = runs.target, load.cases()
    if not cases:
        most = min(MOST, load.requests or MOST)
        search.chosen, search.probes = choose(runs.probe, Load(load.isl, load.osl).case(1), most, say)
        cases = [load.case(search.chosen)]
    shown = []
    for case in cases:
        say(f"{case.name}: {target.url}")
        shown.append(runs.measure(case))
    return {
        "kind": "throughput",
        "model": target.model,
        "load": {"isl": load.isl, "osl": load.osl},
        "auto": search.as_dict(),
        "machine": {"cpu": f"{target.url} (client: {cpu})", "threads": 0, "torch": "", "cache_bytes": 0},
        "versions": versions(),
        "seed": seed,
        "repeat": 1,
        "sides": {SIDE: {"url": target.url, "model": target.model}},
        "ceilings": {},
        "cases": shown,
        "notes": runs.notes,
    }


@dataclass
class _Runs:
    """Runs of the load, each with prompts of its own, and the notes on them."""

    target: Target
    seeds: Iterator[int]
    notes: list[str] = field(default_factory=list)

    def measure(self, case: Case) -> dict[str, Any]:
        """One run as a case of the summary; raises UserError where nothing was answered."""
        found = self._run(case)
        if cached := found["cached_prompt_tokens"]:
            share = f"{cached:,} of {found['prompt_tokens']:,} prompt tokens"
            self.notes.append(f"{case.name}: {share} came from the server's cache, not from computing")
        return _case(case, found)

    def probe(self, case: Case) -> Mapping[str, Any]:
        """Figures of a run for `auto`; empty where a request failed or no time between tokens was seen."""
        found = self._run(case)
        return found if not found["errors"] and found["latency"]["inter_token_s"] else {}

    def _run(self, case: Case) -> dict[str, Any]:
        lengths = Lengths(case.length, case.output, 0.0)
        workload = Workload(case.sequences, None, case.batch, lengths, warmup=1, seed=next(self.seeds))
        measured = send_load(self.target, workload)
        errors = error_kinds(measured.samples)
        self.notes.extend(note for note in measured.notes if note not in self.notes)
        if errors:
            counted = ", ".join(f"{kind}: {count}" for kind, count in errors.items())
            self.notes.append(f"{case.name}: {sum(errors.values())} of {case.sequences} requests failed ({counted})")
        return {**figures(measured.samples, measured.seconds), "errors": errors, "duration": measured.seconds}


def _case(case: Case, found: dict[str, Any]) -> dict[str, Any]:
    if not found["completed"]:
        raise UserError(f"{case.name}: no request was answered ({', '.join(found['errors'])}); is the server up?")
    seconds = found.pop("duration")
    side = {
        "seconds": {**spread([seconds]), "all": [seconds]},
        "tokens_per_second": spread([found["output_tokens_per_second"]]),
        **found,
    }
    return {
        "name": case.name,
        "batch": case.batch,
        "length": case.length,
        "output": case.output,
        "requests": case.sequences,
        "tokens": case.tokens,
        "sides": {SIDE: side},
        "ratios": {},
    }
