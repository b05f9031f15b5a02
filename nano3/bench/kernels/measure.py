"""Times each op by every backend that this machine has, forward and backward, beside the machine's ceilings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nano3 import kernels
from nano3.bench.ceilings import MATMULS, Ceilings, read_ceiling, unit
from nano3.bench.compute_report import spread
from nano3.bench.device.ceilings import DeviceCeilings
from nano3.bench.device.timer import Timer
from nano3.bench.kernels.cases import CPU, DECODING, OpCase, Sizes, cases
from nano3.bench.workload import SEED, Case, Job
from nano3.config.errors import UserError
from nano3.config.model import ModelConfig
from nano3.kernels.dispatch import ops as all_ops

SLOW = 2.0
"""Seconds; a first run that takes longer is the only one."""
AT_A_TIME = 0.05
"""Seconds that one timed run takes at the least, where an op is short: many calls of it."""
FORWARD, BOTH = "forward", "forward and backward"


@dataclass(frozen=True)
class Plan:
    """What to time."""

    cfg: ModelConfig
    sizes: Sizes
    dtype: torch.dtype
    ops: tuple[str, ...] = ()
    """Empty: all."""
    repeat: int = 5
    forward_only: bool = False
    reference: bool = True
    """Also time the reference, which is slow by design."""
    device: torch.device = CPU
    ceilings: Mapping[str, Any] | None = None
    """An earlier result, whose ceilings count; None: they are measured."""

    def __post_init__(self) -> None:
        for op in self.ops:
            if op not in all_ops():
                raise UserError(f"--op {op}: no such op; ops: {', '.join(all_ops())}")
        counts = {f"--{name}": value for name, value in vars(self.sizes).items()}
        for option, value in {"--repeat": self.repeat, **counts}.items():
            if value < 1:
                raise UserError(f"{option} is {value}; it must be at least 1")
        if self.sizes.documents > self.sizes.tokens:
            raise UserError(f"--documents {self.sizes.documents}: there are {self.sizes.tokens} tokens to cut")


def measure(plan: Plan, threads: int, say: Callable[[str], None]) -> dict[str, Any]:
    """All cases with their times, and the ceilings that their shares refer to."""
    torch.set_num_threads(threads)
    if plan.ceilings is not None:
        kept = {key: plan.ceilings.get(key, {}) for key in ("ceilings", "read_by")}
        kept["cache_bytes"] = plan.ceilings["machine"]["cache_bytes"]
        return kept | {"ceilings_measured": False, "cases": _cases(plan, _all_times(plan, say), kept["ceilings"])}
    say("ceilings")
    side = _ceilings(plan.device, threads)
    before = side.run(Case("decode", 1, 1, 1))
    found = _all_times(plan, say)
    after, about = side.run(Case("decode", 1, 1, 1)), side.about()
    ceilings = {
        name: {**spread([before[name], after[name]]), "median": max(before[name], after[name]), "unit": unit(name)}
        for name in before
    }
    return {
        "ceilings": ceilings,
        "ceilings_measured": True,
        "read_by": about.get("read_by", {}),
        "cache_bytes": about["cache_bytes"],
        "cases": _cases(plan, found, ceilings),
    }


Timed = tuple[OpCase, str, dict[str, list[float]], dict[str, str]]
"""A case, its passes, seconds of each backend's runs, and why another has none."""


def _all_times(plan: Plan, say: Callable[[str], None]) -> list[Timed]:
    found: list[Timed] = []
    ops = list(plan.ops) or all_ops()
    for case in cases(plan.cfg, plan.sizes, plan.dtype, ops, SEED, plan.device):
        for passes in _passes(case, plan.forward_only):
            say(f"{case.op}, {passes}")
            found.append((replace(case, run=_done, leaves=()), passes, *_times(case, passes, plan)))
    return found


def _cases(plan: Plan, found: list[Timed], ceilings: Mapping[str, Any]) -> list[dict[str, Any]]:
    rates = {name: each["max"] for name, each in ceilings.items()}
    return [
        _figures(case, passes, times, rates, plan.dtype) | {"failed": failed} for case, passes, times, failed in found
    ]


def _ceilings(device: torch.device, threads: int) -> Ceilings | DeviceCeilings:
    if device.type == "cpu":
        return Ceilings(Job("ceilings", "decode", threads=threads))
    return DeviceCeilings(device)


def _done(**_: Any) -> None:
    """In place of a call whose arguments are needed no more, and would fill the device."""


def _passes(case: OpCase, forward_only: bool) -> Sequence[str]:
    return (FORWARD,) if forward_only or case.op in DECODING or not case.leaves else (FORWARD, BOTH)


def _times(case: OpCase, passes: str, plan: Plan) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of each run by backend, and why another one has none. Backends take turns, so that a busy moment meets
    all of them."""
    timer, counts = Timer(plan.device), {}
    names = [name for name in _usable(case.op, plan.device) if plan.reference or name != "reference"]
    runs = {name: _run(case, passes, name) for name in names}
    times: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    for name, run in runs.items():
        try:
            timer.warm(run)
            first = timer.seconds(run)
        except Exception as error:  # whatever a package, a compiler or a launch raises
            failed[name] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
            continue
        if first > SLOW:
            times[name] = [first]
        else:
            counts[name] = max(1, round(AT_A_TIME / max(timer.seconds(run), 1e-6)))
    for _ in range(plan.repeat):
        for name, count in counts.items():
            times.setdefault(name, []).append(timer.seconds(runs[name], count) / count)
    return {name: times[name] for name in names if name in times}, failed


def _usable(op: str, device: torch.device) -> Iterator[str]:
    """Backends of an op that can run there, the one that nano3 takes by itself first."""
    chosen = kernels.choose(op, device)[0]
    for name in sorted(kernels.backends(op), key=lambda name: name != chosen):
        try:
            kernels.choose(op, device, name)
        except ValueError:
            continue
        yield name


def _run(case: OpCase, passes: str, backend: str) -> Callable[[], object]:
    if passes == FORWARD:

        def forward() -> None:
            with torch.inference_mode():
                case.run(backend=backend)

        return forward

    def both() -> None:
        leaves = [leaf.requires_grad_() for leaf in case.leaves]
        results = case.run(backend=backend)
        total = torch.stack([part.float().sum() for part in _floating(results)]).sum()
        torch.autograd.grad(total, leaves, allow_unused=True)

    return both


def _floating(results: Tensor | tuple) -> list[Tensor]:
    parts = results if isinstance(results, tuple) else (results,)
    return [part for part in parts if part.is_floating_point() and part.requires_grad]


def _figures(
    case: OpCase, passes: str, times: dict[str, list[float]], rates: dict[str, float], dtype: torch.dtype
) -> dict[str, Any]:
    """Times by backend; work, and the least time that the ceilings allow for it."""
    flops = case.flops * (1 if passes == FORWARD else 3)
    moved = case.bytes + (case.gradient_bytes if passes == BOTH else 0)
    ceiling, bandwidth = read_ceiling(moved, rates)
    peak = rates[MATMULS[str(dtype).removeprefix("torch.")]]
    least = max(flops / peak, moved / bandwidth)
    sides = {}
    for name, seconds in times.items():
        all_ = spread(seconds)
        sides[name] = {
            "seconds": {**all_, "all": seconds},
            "flops_per_second": flops / all_["median"],
            "bytes_per_second": moved / all_["median"],
            "share_of_roofline": least / all_["median"],
        }
    return {
        "name": f"{case.op}, {passes}",
        "op": case.op,
        "passes": passes,
        "shapes": case.shapes,
        "flops": flops,
        "bytes": moved,
        "roofline_seconds": least,
        "bound": "compute" if flops / peak > moved / bandwidth else "memory",
        "read_ceiling": ceiling,
        "sides": sides,
    }
