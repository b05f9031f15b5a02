"""Each kernel against the reference on a small case, once a process, before it is used."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

from ..reference import FUNCTIONS as REFERENCE
from . import ops
from .native import native

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


@cache
def problem(op: str) -> str | None:
    """Why the kernel must not be used: no library, or it computes something else than the reference."""
    if native().library is None:
        return native().reason
    return failure(lambda dtype: _error(op, dtype))


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


def _error(op: str, dtype: torch.dtype) -> float:
    """Largest difference of results, updated arguments and gradients, relative to the largest value."""
    kernel = ops.KERNELS[op]
    case = kernel.case(torch.Generator().manual_seed(0), dtype)
    functions = (ops.FUNCTIONS[op], REFERENCE[op])
    with torch.inference_mode():
        got = _outputs(functions[0], case)
        expected = [] if kernel.differentiable else _outputs(functions[1], case)
    if kernel.differentiable:
        expected = _gradients(functions[1], case)  # the reference walks token by token: once, for results too
        results = len(got) - len(_tensors(case))
        got = [*got[:results], *_gradients(functions[0], case)]
        expected = [*expected[:results], *expected]
    return _difference(got, expected)


def _outputs(function: Callable, case: tuple) -> list[Tensor]:
    arguments = [a.clone() if isinstance(a, Tensor) else a for a in case]
    return [*_tensors(function(*arguments)), *_tensors(tuple(arguments))]


def _gradients(function: Callable, case: tuple) -> list[Tensor]:
    """Results, and gradients of their sum, each weighted by numbers that differ from place to place."""
    arguments = [a.clone() if isinstance(a, Tensor) else a for a in case]
    leaves = [a.requires_grad_() for a in _tensors(tuple(arguments)) if a.is_floating_point()]
    results = _tensors(function(*arguments))
    total = torch.stack([(r.float() * _factors(r)).sum() for r in results]).sum()
    grads = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return [*(r.detach() for r in results), *grads]


def _factors(result: Tensor) -> Tensor:
    return torch.linspace(-1, 1, result.numel(), dtype=torch.float32, device="cpu").view_as(result)


def _tensors(results: Tensor | tuple) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else [r for r in results if isinstance(r, Tensor)]


def _difference(got: list[Tensor], expected: list[Tensor]) -> float:
    worst = 0.0
    for a, b in zip(got, expected, strict=True):
        if not bool(torch.isfinite(a).all()):
            return float("inf")
        if b.numel():
            worst = max(worst, float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp_min(1e-6)))
    return worst
