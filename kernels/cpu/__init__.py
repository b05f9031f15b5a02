"""C++ backend for CPUs: what PyTorch does slowly there.

Each function takes what its kernel is good at and hands the rest (other types, sizes and layouts) to the eager one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from . import ops
from .check import problem

FUNCTIONS: dict[str, Callable] = ops.FUNCTIONS


def unavailable(device: torch.device, op: str) -> str | None:
    """Why `op` cannot run here, None when it can."""
    return "C++ kernels run on CPUs" if device.type != "cpu" else problem(op)


def about(op: str) -> str:
    """What runs and on what, in words."""
    from .native import native

    return f"C++ with {native().isa.upper()} for {ops.KERNELS[op].range}, else PyTorch"
