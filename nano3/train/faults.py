"""What a process says when it waited in vain for the others, or one of them is gone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from nano3.config.errors import UserError
from nano3.train.world import World

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


@contextmanager
def steps_limited(world: World, seconds: float, saving: float | None = None) -> Iterator[None]:
    """Inside, processes wait so long for each other at most, and the error where one does not come is one line.

    Args:
        world: the processes.
        seconds: how long (parallel.timeout_s; with rollouts longer).
        saving: parallel.timeout_s, by which they wait for each other's part of a checkpoint; None: `seconds`.

    Raises:
        LostProcessError: instead of the library's error.
    """
    world.limit_waits(seconds, saving)
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
            reason = f"no answer from another process within {seconds:g} s (parallel.timeout_s)"
        elif isinstance(error, dist.DistBackendError):
            reason = f"it cannot speak to the other processes: {text.splitlines()[0]}"
        else:
            raise
        raise LostProcessError(f"rank {world.rank}: {reason}; start the run again with --resume") from error
