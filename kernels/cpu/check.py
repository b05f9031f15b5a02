"""Each kernel against the reference on a small case, once a process, before it is used."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from ..reference import FUNCTIONS as REFERENCE
from . import ops
from .call import failure
from .native import native


@cache
def problem(op: str) -> str | None:
    """Why the kernel must not be used: no library, or it computes something else than the reference."""
    if native().library is None:
        return native().reason
    return failure(lambda dtype: _error(op, dtype))


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
