"""Norms in C++, forward and backward, each in one pass over rows that may be views."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..eager import FUNCTIONS as EAGER
from .call import F, I, Kernel, L, P, declare, empty, normal, run
from .native import TYPES

declare(
    gated_norm=(P, L, P, L, I, P, L, L, L, F, P, P),
    gated_norm_backward=(P, L, P, L, P, L, I, P, P, L, L, L, P, L, P, L, P),
)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See nano3.kernels.rms_norm."""
    if not _fits(weight, x):
        return EAGER["rms_norm"](x, weight, eps)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _Norm.apply(x, None, weight, eps, 1)
    return _forward(x, None, weight, eps, 1, None)


def gated_rms_norm(y: Tensor, z: Tensor, weight: Tensor, eps: float, n_groups: int) -> Tensor:
    """See nano3.kernels.gated_rms_norm."""
    same = z.shape == y.shape and z.dtype == y.dtype and z.device == y.device
    if not same or n_groups < 1 or y.shape[-1] % n_groups or not _fits(weight, y):
        return EAGER["gated_rms_norm"](y, z, weight, eps, n_groups)
    if torch.is_grad_enabled() and (y.requires_grad or z.requires_grad or weight.requires_grad):
        return _Norm.apply(y, z, weight, eps, n_groups)
    return _forward(y, z, weight, eps, n_groups, None)


def row_stride(x: Tensor) -> int | None:
    """Distance between the rows of x (its last dimension), or None where they are not dense and evenly spaced."""
    if x.is_contiguous():
        return x.shape[-1]
    if x.shape[-1] != 1 and x.stride(-1) != 1:
        return None
    stride = span = None
    for size, step in zip(reversed(x.shape[:-1]), reversed(x.stride()[:-1]), strict=True):
        if size == 1:
            continue
        if span not in (None, step):
            return None
        stride, span = step if stride is None else stride, size * step
    return x.shape[-1] if stride is None else stride


def _fits(weight: Tensor, x: Tensor) -> bool:
    """Whether the kernel can take rows x and weight, apart from gates."""
    return (
        x.dtype in TYPES
        and weight.dtype in TYPES
        and weight.shape == x.shape[-1:]
        and x.device.type == "cpu"
        and weight.device.type == "cpu"
        and x.numel() > 0
    )


def _dense_rows(x: Tensor) -> tuple[Tensor, int]:
    """x, or a copy of it where its rows cannot be read in place, and the distance between rows."""
    stride = row_stride(x)
    return (x, stride) if stride is not None else (x.contiguous(), x.shape[-1])


def _wide(weight: Tensor) -> Tensor:
    return weight if weight.dtype == torch.float32 and weight.is_contiguous() else weight.float().contiguous()


def _forward(y: Tensor, z: Tensor | None, weight: Tensor, eps: float, groups: int, rstd: Tensor | None) -> Tensor:
    width = y.shape[-1]
    y, y_stride = _dense_rows(y)
    z, z_stride = (None, 0) if z is None else _dense_rows(z)
    w, out = _wide(weight), torch.empty_like(y, memory_format=torch.contiguous_format)
    done = run(
        "gated_norm", y.data_ptr(), y_stride, _address(z), z_stride, TYPES[y.dtype], w.data_ptr(), y.numel() // width,
        width, groups, eps, out.data_ptr(), _address(rstd),
    )  # fmt: skip
    if not done:
        raise MemoryError("rms_norm: no memory for one row of values a thread")
    return out


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


class _Norm(torch.autograd.Function):
    """Keeps the inputs and each group's inverse deviation."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, z: Tensor | None, weight: Tensor, eps: float, groups: int) -> Tensor:
        rstd = empty(y.numel() // y.shape[-1], groups)
        out = _forward(y, z, weight, eps, groups, rstd)
        ctx.save_for_backward(y, z, weight, rstd)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor):
        y, z, weight, rstd = ctx.saved_tensors
        width = y.shape[-1]
        dy = empty(y.shape, dtype=y.dtype)
        dz = None if z is None else empty(y.shape, dtype=y.dtype)
        w, dw = _wide(weight), empty(width)
        (y, y_stride), (dout, dout_stride) = _dense_rows(y), _dense_rows(dout)
        z, z_stride = (None, 0) if z is None else _dense_rows(z)
        done = run(
            "gated_norm_backward", y.data_ptr(), y_stride, _address(z), z_stride, dout.data_ptr(), dout_stride,
            TYPES[y.dtype], w.data_ptr(), rstd.data_ptr(), rstd.shape[0], width, rstd.shape[1], dy.data_ptr(), width,
            _address(dz), width, dw.data_ptr(),
        )  # fmt: skip
        if not done:
            raise MemoryError("rms_norm: no memory for one row of sums a thread")
        return dy, dz, dw.to(weight.dtype), None, None


def _norm(g: torch.Generator, dtype: torch.dtype) -> tuple:
    return normal(g, dtype, 3, 35), normal(g, dtype, 35), 1e-5


def _gated(g: torch.Generator, dtype: torch.dtype) -> tuple:
    return normal(g, dtype, 3, 5, 38), normal(g, dtype, 3, 5, 38), normal(g, dtype, 38), 1e-5, 2


KERNELS = {
    "rms_norm": Kernel(rms_norm, "float32 and bfloat16", _norm, differentiable=True),
    "gated_rms_norm": Kernel(gated_rms_norm, "float32 and bfloat16", _gated, differentiable=True),
}
