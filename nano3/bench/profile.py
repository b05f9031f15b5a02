"""Where the time of one run goes, by op of nano3 and by op of PyTorch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, record_function

from nano3.kernels import ops

OURS = "nano3::"
BACKWARD = "autograd::engine::evaluate_function: "
OTHER = "rest of the model and engine"
MOST_ROWS = 20


def profile(run: Callable[[], object]) -> dict[str, Any]:
    """Self time of everything in one run, which is slower than one without a profiler.

    Returns:
        `ops`: by nano3's ops, their backward passes and the rest; `torch`: by PyTorch's. Rows of name, calls, seconds
        and share, the largest first, small ones together at the end; time outside any op of PyTorch's is in neither.
    """
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profiler, named_ops():
        run()
    by_op, by_torch = _Sums(), _Sums()
    for event in profiler.events() or []:
        seconds = event.self_cpu_time_total / 1e6
        label = _label(event)
        by_op.add(label, seconds, event.name == OURS + label or event.name.startswith(BACKWARD))
        by_torch.add(event.name.removeprefix(OURS), seconds, True)
    return {"ops": by_op.rows(), "torch": by_torch.rows()}


@contextmanager
def named_ops() -> Iterator[None]:
    """Within the block a profiler sees nano3's ops by name; kernels that are no ops of PyTorch's show up at all."""
    choose = ops.choose

    def named(op: str, device: Any, backend: str | None = None) -> tuple[str, Callable]:
        name, function = choose(op, device, backend)

        def run(*args: Any, **kwargs: Any) -> Any:
            with record_function(f"{OURS}{op} ({name})"):
                return function(*args, **kwargs)

        return name, run

    with patch.object(ops, "choose", named):
        yield


class _Sums:
    """Seconds and calls by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)

    def add(self, name: str, seconds: float, is_call: bool) -> None:
        self.seconds[name] += seconds
        self.calls[name] += is_call

    def rows(self) -> list[dict[str, Any]]:
        total = sum(self.seconds.values()) or 1.0
        names = sorted(self.seconds, key=lambda name: -self.seconds[name])
        rows = [(name, self.calls[name], self.seconds[name]) for name in names[:MOST_ROWS]]
        rest = names[MOST_ROWS:]
        if rest:
            calls, seconds = (sum(of[name] for name in rest) for of in (self.calls, self.seconds))
            rows.append((f"{len(rest)} others", calls, seconds))
        return [{"name": n, "calls": calls, "seconds": s, "share": s / total} for n, calls, s in rows]


def _label(event: Any) -> str:
    """The op of nano3, or the backward pass, that an event belongs to."""
    while event is not None:
        if event.name.startswith(OURS):
            return event.name.removeprefix(OURS)
        if event.name.startswith(BACKWARD):
            return "backward: " + event.name.removeprefix(BACKWARD)
        event = event.cpu_parent
    return OTHER
