"""Seconds of calls on one device: by the clock on a CPU, by the device's own events on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

EMPTIED_BYTES = 256 << 20
"""Written before each call on a GPU: more than its cache holds, so that nothing of the call before is in it."""
MOST_EVENTS = 1000
"""Calls on a GPU that are queued before the host waits."""


class Timer:
    """Times calls on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._cold = torch.empty(EMPTIED_BYTES, dtype=torch.int8, device=device) if device.type == "cuda" else None

    def warm(self, run: Callable[[], object]) -> None:
        """One call that does not count, on a GPU: it compiles kernels and tunes them."""
        if self._cold is not None:
            run()
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Callable[[], object], count: int = 1) -> float:
        """How long `count` calls take together.

        On a GPU each begins with an empty cache, and while that is emptied the host is already ahead: launches cost
        nothing where the call makes few of them. A call that takes the host longer than the device takes that long.
        """
        if self._cold is None:
            start = time.perf_counter()
            for _ in range(count):
                run()
            return time.perf_counter() - start
        done = 0.0
        while count > 0:
            part = min(count, MOST_EVENTS)
            done, count = done + self._on_device(run, part), count - part
        return done

    def _on_device(self, run: Callable[[], object], count: int) -> float:
        assert self._cold is not None
        with torch.cuda.device(self.device):
            pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
            for before, after in pairs:
                self._cold.zero_()
                before.record()
                run()
                after.record()
            torch.cuda.synchronize(self.device)
            return sum(before.elapsed_time(after) for before, after in pairs) / 1000
