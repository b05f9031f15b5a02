"""Where the time of one run goes, by op of nano3 and by op of PyTorch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Self
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, record_function

from nano3.kernels import choose, ops, sequence_ops

OURS = "nano3::"
BACKWARD = "autograd::engine::evaluate_function: "
OTHER = "other ops of PyTorch"
PYTHON = "Python, outside of ops"
MOST_ROWS = 20


class Profile:
    """A context manager whose block is profiled; runs under it are slower than others."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._profiler = torch.profiler.profile(activities=[ProfilerActivity.CPU])

    def __enter__(self) -> Self:
        self._stack.enter_context(self._profiler)
        self._stack.enter_context(named_ops())
        self._stack.enter_context(record_function(PYTHON))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Self time of everything in the block.

        Returns:
            `ops`: by nano3's ops, their backward passes and the rest; `torch`: by PyTorch's. Rows of name, calls,
            seconds and share, the largest first, small ones together at the end.
        """
        by_op, by_torch = _Sums(), _Sums()
        for event in self._profiler.events() or []:
            seconds, label = event.self_cpu_time_total / 1e6, _label(event)
            by_op.add(label, seconds, event.name == OURS + label or event.name.startswith(BACKWARD))
            by_torch.add(event.name.removeprefix(OURS), seconds, event.name != PYTHON)
        return {"ops": by_op.rows(), "torch": by_torch.rows()}


@contextmanager
def named_ops() -> Iterator[None]:
    """Within the block a profiler sees nano3's ops by name; kernels that are no ops of PyTorch's show up at all."""

    def named(op: str, device: Any, backend: str | None = None) -> tuple[str, Callable]:
        name, function = choose(op, device, backend)

        def run(*args: Any, **kwargs: Any) -> Any:
            with record_function(f"{OURS}{op} ({name})"):
                return function(*args, **kwargs)

        return name, run

    with patch.object(ops, "choose", named), patch.object(sequence_ops, "choose", named):
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
            calls, seconds = sum(self.calls[name] for name in rest), sum(self.seconds[name] for name in rest)
            rows.append((f"{len(rest)} others", calls, seconds))
        return [{"name": n, "calls": calls, "seconds": s, "share": s / total} for n, calls, s in rows]


def _label(event: Any) -> str:
    """The op of nano3, or the backward pass, that an event belongs to."""
    if event.name == PYTHON:
        return PYTHON
    while event is not None:
        if event.name.startswith(OURS):
            return event.name.removeprefix(OURS)
        if event.name.startswith(BACKWARD):
            return "backward: " + event.name.removeprefix(BACKWARD)
        event = event.cpu_parent
    return OTHER
