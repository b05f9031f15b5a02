"""What the kernels share: which tensors they take, and how one is launched."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..cpu.guard import may_run, opaque

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels were made for the interpreter; their modules import this one, so triton saw the same."""
TYPES = frozenset({torch.float32, torch.float16} if INTERPRETED else {torch.float32, torch.float16, torch.bfloat16})
"""What kernels read and write. The interpreter gives wrong numbers for bfloat16."""


class Kernel(NamedTuple):
    """An op of this backend."""

    function: Callable
    """What `nano3.kernels` calls; hands to PyTorch what its kernel does not take."""
    range: str
    """What the kernel takes, in a few words."""
    case: Callable[[torch.Generator, torch.dtype], tuple]
    """Arguments, on the CPU, of a small, odd-sized call for the self-check."""
    differentiable: bool = False
    """Whether the kernel has a backward pass, which the self-check runs too."""
    other_cases: tuple[Callable[[torch.Generator, torch.dtype], tuple | None], ...] = ()
    """For the self-check of what other sizes run; None where there is nothing of this type."""


def guarded(function: Callable, otherwise: Callable) -> Callable:
    """`function` where a kernel may run, `otherwise` under autocast, torch.func and what traces calls."""

    @wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        if may_run(*arguments, *options.values()) and not torch.is_autocast_enabled("cuda"):
            return function(*arguments, **options)
        return otherwise(*arguments, **options)

    return opaque(call)


def fits(*tensors: Tensor | None) -> bool:
    """Whether all are floats that kernels read, on one device that kernels run on."""
    given = [t for t in tensors if t is not None]
    device = given[0].device
    return device.type == ("cpu" if INTERPRETED else "cuda") and all(
        t.dtype in TYPES and t.device == device for t in given
    )


def shaped(*given: tuple[Tensor | None, tuple[int, ...]]) -> bool:
    """Whether each tensor that there is has its shape: a kernel would read past the end of a smaller one."""
    return all(tensor is None or tensor.shape == shape for tensor, shape in given)


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether a backward pass may follow."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def launch(kernel: Any, grid: tuple[int, ...], first: Tensor, *arguments: Any, **constants: Any) -> None:
    """Run a kernel on the device of its first argument, a tensor."""
    if first.device.type == "cuda" and first.device.index != torch.cuda.current_device():
        with torch.cuda.device(first.device):
            kernel[grid](first, *arguments, **constants)
    else:
        kernel[grid](first, *arguments, **constants)


def power_of_2(number: int) -> int:
    """The lowest one that is not below `number`: what a block in Triton has to be."""
    return 1 << max(number - 1, 0).bit_length()


def dense_rows(x: Tensor) -> Tensor:
    """(..., D) -> (rows, D) with a dense last dimension; a view where there is one."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def normal(g: torch.Generator, dtype: torch.dtype, *shape: int) -> Tensor:
    """Random numbers for a self-check."""
    return torch.randn(*shape, generator=g, dtype=torch.float32, device="cpu").to(dtype)
