"""Settings of the process for numerical work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch

from nano3.kernels.allocator import keep_freed_memory


def tune_process(device: torch.device) -> None:
    """Settings for a long CPU run; call before the first tensor work, so that worker threads inherit them.

    Subnormal numbers (the moments of rarely seen embeddings end there) cost CPUs up to 100 times a normal operation
    and mean nothing here, so they are flushed to zero.
    """
    if device.type == "cpu":
        # NumPy looks up the smallest subnormal once, and warns where that comes out as zero.
        for name in ("float32", "float64"):
            numpy.finfo(numpy.dtype(name))
        torch.set_flush_denormal(True)
        keep_freed_memory()


@contextmanager
def tuned_process(device: torch.device) -> Iterator[None]:
    """`tune_process` for the length of the block: afterwards subnormal numbers are numbers again."""
    tune_process(device)
    try:
        yield
    finally:
        if device.type == "cpu":
            torch.set_flush_denormal(False)
