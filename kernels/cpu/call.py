"""Calling a compiled kernel: argument types, outcomes, and which tensors it can read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_float, c_int, c_int64, c_void_p
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .native import TYPES, native

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Of self-checks: largest difference from the reference, relative to the largest value."""
DONE, BAD_INDEX = 0, 2
"""What a kernel returns; anything else: it had no memory."""
P, I, L, F = c_void_p, c_int, c_int64, c_float
"""Pointer, int, int64, float: the alphabet of signatures."""
_SIGNATURES: dict[str, tuple] = {}


class Kernel(NamedTuple):
    """An op of this backend."""

    function: Callable
    """What `nano3.kernels` calls; hands to PyTorch what its kernel does not take."""
    range: str
    """What the kernel takes, in a few words."""
    case: Callable[[torch.Generator, torch.dtype], tuple]
    """Arguments of a small, odd-sized call for the self-check."""
    differentiable: bool = False
    """Whether the kernel has a backward pass, which the self-check runs too."""


def declare(**signatures: tuple) -> None:
    """Argument types of C functions by name, without the instruction set at its end and the thread count."""
    _SIGNATURES.update({name: (*types, I) for name, types in signatures.items()})


@cache
def _function(name: str, exact: bool) -> Callable:
    function = native().function(name, exact=exact)
    function.argtypes, function.restype = _SIGNATURES[name], I
    return function


def run(name: str, *arguments: Any, exact: bool = False, threads: int | None = None) -> bool:
    """Call a kernel; False when it had no memory for its buffers and did nothing.

    Args:
        threads: as many as PyTorch uses, where None.
        exact: products with bfloat16 weights are of float32 numbers; otherwise levels with bfloat16 products round the
            rows that they multiply.

    Raises:
        IndexError: an index out of range.
    """
    outcome = _function(name, exact)(*arguments, threads or torch.get_num_threads())
    if outcome == BAD_INDEX:
        raise IndexError(f"{name}: an index is out of range")
    return outcome == DONE


def failure(error_of: Callable[[torch.dtype], float], least: float = 0.0) -> str | None:
    """What is wrong in words, None when the error with each type is small enough; `least` always is.

    Checks run in a thread of their own: autocast, inference mode, default device and modes that trace are the
    caller's alone, and the answer holds for the whole process.
    """
    with ThreadPoolExecutor(1) as thread:
        for dtype, tolerance in TOLERANCE.items():
            error = thread.submit(error_of, dtype).result()
            if not error <= max(tolerance, least):
                return f"its self-check failed on {native().isa}: {dtype} differs by {error:.2g} from the reference"
    return None


def readable(*tensors: Tensor) -> bool:
    """Whether all are float32 or bfloat16 and on CPU."""
    return all(t.dtype in TYPES and t.device.type == "cpu" for t in tensors)


def plain(*tensors: Tensor) -> bool:
    """Whether all are float32 or bfloat16, on CPU, contiguous, without a gradient to come."""
    grads = torch.is_grad_enabled()
    return readable(*tensors) and all(t.is_contiguous() and not (grads and t.requires_grad) for t in tensors)


def empty(*shape: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """torch.empty for what a kernel writes: on the CPU, whatever the default type and device are."""
    return torch.empty(*shape, dtype=dtype, device="cpu")


def integers(numbers: Sequence) -> Tensor:
    """torch.tensor for indices: int64, on the CPU."""
    return torch.tensor(numbers, dtype=torch.int64, device="cpu")


def normal(g: torch.Generator, dtype: torch.dtype, *shape: int) -> Tensor:
    """Random numbers for a self-check."""
    return torch.randn(*shape, generator=g, dtype=torch.float32, device="cpu").to(dtype)
