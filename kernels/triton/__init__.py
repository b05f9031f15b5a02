"""Triton backend for NVIDIA GPUs; on CPU tensors by Triton's interpreter, for tests.

Each function takes what its kernel is good at and hands the rest (other types, sizes, gradients) to the eager one.
Modules with kernels import triton, so they are imported at an op's first use only.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from ..common import ForNow, located

if TYPE_CHECKING:
    from .call import Kernel

INTERPRET = "TRITON_INTERPRET"
"""Triton's own variable: 1 when triton is imported: kernels run on the CPU, slowly."""
OLDEST = (8, 0)
"""Lowest compute capability: Ampere's."""

MODULES = {
    "rms_norm": "norm",
    "gated_rms_norm": "norm",
    "causal_conv1d": "conv",
    "mamba_step": "mamba",
    "paged_attention": "paged_queries",
    "paged_decode": "paged",
    "route": "route",
    "ssd_scan": "scan",
    "grouped_mlp": "experts",
}
"""Op -> module of this folder whose KERNELS has it."""


@cache
def kernel(op: str) -> Kernel:
    """The op's kernel; imports triton.

    Raises:
        ImportError: no triton here.
    """
    return import_module(f".{MODULES[op]}", __name__).KERNELS[op]


def _function(op: str) -> Callable:
    def call(*arguments: Any, **options: Any) -> Any:
        return kernel(op).function(*arguments, **options)

    return call


FUNCTIONS: dict[str, Callable] = {op: _function(op) for op in MODULES}


def unavailable(device: torch.device, op: str) -> str | None:
    """Why `op` cannot run there, None when it can."""
    if device.type == "cpu" and os.environ.get(INTERPRET) != "1":
        return f"Triton kernels run on CUDA devices (with {INTERPRET}=1 on CPUs too, by a slow interpreter)"
    if device.type not in ("cpu", "cuda"):
        return "Triton kernels run on CUDA devices"
    if device.type == "cuda" and not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < OLDEST:
        return "its kernels need compute capability 8.0, which this GPU lacks"
    return _problem(located(device), op)


_PROBLEMS: dict[tuple[torch.device, str], str | None] = {}


def _problem(device: torch.device, op: str) -> str | None:
    if (device, op) in _PROBLEMS:
        return _PROBLEMS[device, op]
    found = _checked(device, op)
    if not isinstance(found, ForNow):
        _PROBLEMS[device, op] = found
    return found


def _checked(device: torch.device, op: str) -> str | None:
    try:
        found = kernel(op)
    except Exception as error:  # a broken package raises anything
        return f"triton cannot be imported: {_line(error)}"
    from .check import problem

    return problem(op, found, device)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def reserved(device: torch.device, _op: str) -> str | None:
    """Why it is used only where it is forced, None where it is chosen by itself."""
    return "its interpreter is slow" if device.type == "cpu" else None


def about(op: str) -> str:
    """What runs and on what, in words."""
    return f"Triton for {kernel(op).range}, else PyTorch"
