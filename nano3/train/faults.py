"""What a process says when it waited in vain for the others, or one of them is gone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch.distributed as dist

from nano3.config.errors import UserError
from nano3.train.world import ROLLOUTS, World

_LATE = re.compile(r"timed out|timeout", re.IGNORECASE)
_GONE = re.compile(
    r"closed by peer|reset by peer|broken pipe|connection refused|no route to host|is unreachable|host is down|"
    r"remote process (exited|exiting)",
    re.IGNORECASE,
)
_OF_GPU = "CUDA error"
"""Begins of what goes wrong on the own GPU, which may time out too."""


class LostProcessError(UserError):
    """Another process of the run did not answer in time, or ended."""


@dataclass(frozen=True)
class Patience:
    """How long processes wait for each other in a step."""

    seconds: float
    reason: str = "parallel.timeout_s"
    """The settings that it comes from."""


def patience_of(timeout_s: float, rollouts: bool, server_seconds: float) -> Patience:
    """In a step with `rollouts` one process may rightly be much later than another.

    Args:
        timeout_s: parallel.timeout_s.
        rollouts: whether a step draws samples.
        server_seconds: what a server may take for one answer (rollout.server_seconds); 0: none draws.
    """
    if not rollouts:
        return Patience(timeout_s)
    least = ROLLOUTS.total_seconds()
    if server_seconds and timeout_s + server_seconds >= least:
        return Patience(timeout_s + server_seconds, "parallel.timeout_s + rollout.server_seconds")
    if timeout_s >= least:
        return Patience(timeout_s)
    return Patience(least, f"the least with rollouts; parallel.timeout_s is {timeout_s:g}")


@contextmanager
def steps_limited(world: World, patience: Patience, saving: float | None = None) -> Iterator[None]:
    """Inside, processes wait so long for each other at most, and the error where one does not come is one line.

    Args:
        world: the processes.
        patience: how long.
        saving: parallel.timeout_s, by which they wait for each other's part of a checkpoint; None: the same.

    Raises:
        LostProcessError: instead of the library's error.
    """
    world.limit_waits(patience.seconds, saving)
    try:
        yield
        world.limit_waits(None)
    except RuntimeError as error:
        if world.size == 1 or isinstance(error, LostProcessError):
            raise
        text = str(error)
        if _GONE.search(text):
            reason = "the connection to another process broke: it ended, or its machine is out of reach"
        elif _LATE.search(text) and not text.startswith(_OF_GPU):
            reason = f"no answer from another process within {patience.seconds:g} s ({patience.reason})"
        elif isinstance(error, dist.DistBackendError):
            reason = f"it cannot speak to the other processes: {text.splitlines()[0]}"
        else:
            raise
        raise LostProcessError(f"rank {world.rank}: {reason}; start the run again with --resume") from error
