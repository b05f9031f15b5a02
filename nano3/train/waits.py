"""How long each process works on a step, and which is the slowest."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

WINDOW = 10
"""Steps between two comparisons."""
MUCH_SLOWER = 1.25
"""Own time of the slowest process, over that of the fastest, from which on it is named."""


class Waits:
    """Seconds in which this process waited for others, as far as it can be seen: where all come together before a
    step's first pass and after its last. Inside passes the waits of all are about the same."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def counted(self, device: torch.device) -> Iterator[None]:
        """Around something that lasts until the last process is there."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # the host runs ahead of its GPU, and would wait for that inside
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started


class Compared(Protocol):
    """What is asked of the processes (nano3.train.world.World)."""

    @property
    def size(self) -> int: ...
    @property
    def waits(self) -> Waits: ...
    def to_main(self, value: Any) -> list[Any]: ...


class Pace:
    """Compares the processes every WINDOW steps.

    Args:
        world: the processes.
        say: takes messages for the user.
    """

    def __init__(self, world: Compared, say: Callable[[str], None]) -> None:
        self._world, self._say = world, say
        self._steps, self._seconds, self._named = 0, 0.0, -1

    def add(self, seconds: float) -> dict[str, float]:
        """Count a step of so many seconds; every process must call.

        Returns:
            For the metrics line of the last step of a window: seconds a step that the fastest and the slowest process
            worked without waiting for others, and the rank of the slowest. Else nothing.
        """
        if self._world.size == 1:
            return {}
        self._steps, self._seconds = self._steps + 1, self._seconds + seconds
        if self._steps < WINDOW:
            return {}
        own = (self._seconds - self._world.waits.seconds) / self._steps
        self._steps, self._seconds, self._world.waits.seconds = 0, 0.0, 0.0
        found = self._world.to_main((own, socket.gethostname()))
        return self._compare(found) if found else {}

    def _compare(self, found: list[tuple[float, str]]) -> dict[str, float]:
        times = [own for own, _ in found]
        slowest, least, most = times.index(max(times)), min(times), max(times)
        if most > MUCH_SLOWER * least and slowest != self._named:
            self._named = slowest
            self._say(
                f"rank {slowest} on {found[slowest][1]} is the slowest of {len(found)}: {most:.3g} s of work a step, "
                f"and the fastest has {least:.3g} s (last {WINDOW} steps)"
            )
        return {"fastest_rank_seconds": least, "slowest_rank_seconds": most, "slowest_rank": float(slowest)}
