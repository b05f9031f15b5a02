"""Each kernel against the float64 reference on a small case, once a process and device, before it is used."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from ..common import ForNow
from ..reference import FUNCTIONS as REFERENCE
from ..scaled import Scaled
from .call import INTERPRETED, Kernel

TOLERANCE = {torch.float32: 1e-4} if INTERPRETED else {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Largest difference from the reference, relative to the largest value."""
FULL = "out of memory"
"""In what PyTorch, cuBLAS and the driver say of memory that is full; not of a kernel with too much shared memory."""


def problem(op: str, kernel: Kernel, device: torch.device) -> str | None:
    """Why the kernel must not be used: it computes something else than the reference, or does not run at all."""
    if (device.type == "cpu") != INTERPRETED:
        return f"triton was imported with{'' if INTERPRETED else 'out'} TRITON_INTERPRET=1"
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return ForNow("its self-check cannot run while a CUDA graph is made")
    # A thread of its own: autocast, inference mode and modes that trace are the caller's, the answer is the process's.
    with ThreadPoolExecutor(1) as thread:
        for dtype, tolerance in TOLERANCE.items():
            try:
                error = thread.submit(_error, op, kernel, dtype, device).result()
            except Exception as failure:  # whatever a compiler, a driver or a launch raises
                first = (str(failure).strip().splitlines() or [""])[0]
                reason = f"its self-check raised {type(failure).__name__}: {first}"
                return ForNow(reason) if FULL in str(failure).lower() else reason
            if not error <= tolerance:
                return f"its self-check failed: {dtype} differs by {error:.2g} from the reference"
    return None


def _error(op: str, kernel: Kernel, dtype: torch.dtype, device: torch.device) -> float:
    """Largest difference in any of the kernel's cases."""
    cases = [make(torch.Generator().manual_seed(0), dtype) for make in (kernel.case, *kernel.other_cases)]
    return max(_case_error(op, kernel, case, device) for case in cases if case is not None)


def _case_error(op: str, kernel: Kernel, case: tuple, device: torch.device) -> float:
    """Largest difference of results, updated arguments and gradients, relative to the largest value of each."""
    run = _with_gradients if kernel.differentiable else _outputs
    expected = run(REFERENCE[op], [_changed(a, "cpu", torch.float64) for a in case])
    got = run(kernel.function, [_changed(a, device, None) for a in case])
    return _difference([t.cpu() for t in got], expected)


def _changed(argument: object, device: torch.device | str, dtype: torch.dtype | None) -> object:
    """A copy on `device`; of floats in `dtype`."""
    if isinstance(argument, Scaled):
        given = (argument.data, argument.scale, argument.input_scale)
        return Scaled(*(None if t is None else t.to(device) for t in given))  # type: ignore[arg-type]
    if not isinstance(argument, Tensor):
        return argument
    keep = dtype is None or not argument.is_floating_point() or argument.element_size() == 1
    return argument.clone().to(device, argument.dtype if keep else dtype)


@torch.no_grad()
def _outputs(function: Callable, arguments: list) -> list[Tensor]:
    return [*_tensors(function(*arguments)), *_tensors(arguments)]


def _with_gradients(function: Callable, arguments: list) -> list[Tensor]:
    """Results, and gradients of their sum, each weighted by numbers that differ from place to place."""
    leaves = [a.requires_grad_() for a in _tensors(arguments) if a.is_floating_point()]
    results = _tensors(function(*arguments))
    total = torch.stack([(r * _factors(r)).sum().float() for r in results if r.requires_grad]).sum()
    grads = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return [*(r.detach() for r in results), *grads]


def _factors(result: Tensor) -> Tensor:
    steps = torch.linspace(-1, 1, result.numel(), dtype=torch.float32, device="cpu")
    return steps.view_as(result).to(result.device)


def _tensors(values: object) -> list[Tensor]:
    given = values if isinstance(values, (tuple, list)) else [values]
    return [value for value in given if isinstance(value, Tensor)]


def _difference(got: list[Tensor], expected: list[Tensor]) -> float:
    worst = 0.0
    for a, b in zip(got, expected, strict=True):
        if b.numel():
            error = (a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-6)
            worst = max(worst, float("inf") if error.isnan() else float(error))
    return worst
