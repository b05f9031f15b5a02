"""One measurement a point, each in processes of its own, so that its peak of memory is its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from nano3.bench.compute import Plan, measure
from nano3.bench.compute_report import summary
from nano3.bench.workload import Case
from nano3.config.errors import UserError

Work = Literal["train", "forward", "decode"]
WORKS: tuple[Work, ...] = ("train", "forward", "decode")
AXES = ("length", "batch", "experts")
OUTPUT = 32
"""Tokens that each sequence gets, when decoding."""


@dataclass(frozen=True)
class Grid:
    """What is changed, one thing at a time; the others stay at the first of theirs, experts at the model's own."""

    work: Work
    lengths: tuple[int, ...]
    batches: tuple[int, ...]
    experts: tuple[int, ...]
    axes: tuple[str, ...] = AXES

    def __post_init__(self) -> None:
        if self.work not in WORKS:
            raise UserError(f"--work {self.work}: not known; use one of {', '.join(WORKS)}")
        for axis in self.axes:
            if axis not in AXES:
                raise UserError(f"--axis {axis}: not known; use some of {','.join(AXES)}")
            if len(self.values(axis)) < 2:
                option = {"length": "--seq-len", "batch": "--batch", "experts": "--experts"}[axis]
                raise UserError(f"{option}: growth needs two values or more, such as 512,1024")

    def values(self, axis: str) -> tuple[int, ...]:
        """The points of an axis, from the smallest."""
        return tuple(sorted({"length": self.lengths, "batch": self.batches, "experts": self.experts}[axis]))

    def case(self, axis: str, value: int) -> Case:
        """The work of one point."""
        length, batch = self.values("length")[0], self.values("batch")[0]
        length, batch = value if axis == "length" else length, value if axis == "batch" else batch
        if self.work == "decode":
            return Case("decode", batch, length, OUTPUT)
        return Case("train", batch, length, forward_only=self.work == "forward")


def measure_grid(plan: Plan, grid: Grid, cpu: str, say: Callable[[str], None]) -> dict[str, Any]:
    """All points of all axes: figures as of compute_report.summary, with `axis` and `value` in each case, and `growth`.

    Raises:
        UserError: a wrong input.
    """
    cases: list[dict[str, Any]] = []
    whole: dict[str, Any] = {}
    for axis in grid.axes:
        for value in grid.values(axis):
            say(f"{axis} {value:,}")
            experts = value if axis == "experts" else 0
            found = summary(
                measure(replace(plan, cases=[grid.case(axis, value)], experts=experts, ceilings=False), say), cpu
            )
            whole = whole or found
            [case] = found["cases"]
            cases.append({**case, "name": f"{axis} {value:,}", "axis": axis, "value": value})
    growth = {axis: growth_of([case for case in cases if case["axis"] == axis]) for axis in grid.axes}
    kept = ("model", "pattern", "machine", "versions", "seed", "repeat", "sides", "backends")
    fixed = {"length": grid.values("length")[0], "batch": grid.values("batch")[0]}
    return {
        "kind": "scaling", "work": grid.work, "fixed": fixed, **{key: whole[key] for key in kept}, "ceilings": {},
        "cases": cases, "growth": growth,
    }  # fmt: skip


def growth_of(cases: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """For each side that did the first point and another: the exponents of time and memory from the first point to the
    last that it did. 1: twice the value takes twice as much; 0: as much."""
    found: dict[str, dict[str, float]] = {}
    for name in cases[0]["sides"]:
        done = [case for case in cases if "seconds" in case["sides"][name]]
        if len(done) < 2 or done[0] is not cases[0]:
            continue
        first, last = done[0], done[-1]
        steps = math.log(last["value"] / first["value"])
        ends = [case["sides"][name] for case in (first, last)]
        times, peaks = ([side["seconds"]["median"] for side in ends], [side["peak_memory_bytes"] for side in ends])
        found[name] = {
            "time": math.log(times[1] / times[0]) / steps,
            "memory": math.log(peaks[1] / peaks[0]) / steps,
            "bytes_each": (peaks[1] - peaks[0]) / (last["value"] - first["value"]),
        }
    return found
