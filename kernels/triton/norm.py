"""Norms: one program for each group of a row; backward, for each group of some rows."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..eager import FUNCTIONS as EAGER
from .call import INTERPRETED, Kernel, dense_rows, fits, guarded, launch, normal, power_of_2, shaped, wants_gradient

WIDEST = 1 << 14
"""Most numbers of a group; one program holds them all in registers."""
PROGRAMS = 4 if INTERPRETED else 1024
"""Of a backward pass, about: each adds up one row of the weight's gradient."""


@triton.jit
def norm_kernel(
    Y, Z, W, OUT, RSTD, y_stride, z_stride, out_stride, width, eps,
    GATED: tl.constexpr, KEEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """OUT = (y * silu(z) if GATED else y), normalised over one group of `width` numbers, times W; KEEP: also
    RSTD (rows, groups), the factor that normalised it."""
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = column < width
    column += tl.program_id(1) * width
    y = tl.load(Y + row * y_stride + column, mask=inside, other=0.0).to(tl.float32)
    if GATED:
        z = tl.load(Z + row * z_stride + column, mask=inside, other=0.0).to(tl.float32)
        y *= z * tl.sigmoid(z)
    rstd = 1 / tl.sqrt(tl.sum(y * y, 0) / width + eps)
    if KEEP:
        tl.store(RSTD + row * tl.num_programs(1) + tl.program_id(1), rstd)
    weight = tl.load(W + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(OUT + row * out_stride + column, (y * rstd * weight).to(OUT.dtype.element_ty), mask=inside)


@triton.jit
def norm_backward_kernel(
    Y, Z, W, RSTD, DOUT, DY, DZ, DW, rows, share, y_stride, z_stride, dout_stride, width,
    GATED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """DY and DZ of one group of `share` rows, and these rows' part of the weight's gradient: DW (programs, D)."""
    first, column, g = tl.program_id(0) * share, tl.arange(0, BLOCK), tl.program_id(1)
    inside, D = column < width, width * tl.num_programs(1)
    column += g * width
    weight = tl.load(W + column, mask=inside, other=0.0).to(tl.float32)
    dweight = tl.zeros((BLOCK,), tl.float32)
    for number in range(first, tl.minimum(first + share, rows)):
        row = tl.cast(number, tl.int64)
        y = tl.load(Y + row * y_stride + column, mask=inside, other=0.0).to(tl.float32)
        dout = tl.load(DOUT + row * dout_stride + column, mask=inside, other=0.0).to(tl.float32)
        rstd = tl.load(RSTD + row * tl.num_programs(1) + g)
        normed = y * rstd
        if GATED:
            z = tl.load(Z + row * z_stride + column, mask=inside, other=0.0).to(tl.float32)
            share_of_z = tl.sigmoid(z)
            gate = z * share_of_z
            normed *= gate
        dweight += dout * normed
        dnormed = dout * weight
        dx = (dnormed - normed * (tl.sum(dnormed * normed, 0) / width)) * rstd
        if GATED:
            dz = dx * y * share_of_z * (1 + z * (1 - share_of_z))
            tl.store(DZ + row * D + column, dz.to(DZ.dtype.element_ty), mask=inside)
            dx *= gate
        tl.store(DY + row * D + column, dx.to(DY.dtype.element_ty), mask=inside)
    tl.store(DW + tl.program_id(0).to(tl.int64) * D + column, dweight, mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See nano3.kernels.rms_norm."""
    if not _takes(x, None, weight, 1):
        return EAGER["rms_norm"](x, weight, eps)
    return _norm(x, None, weight, eps, 1)


def gated_rms_norm(y: Tensor, z: Tensor, weight: Tensor, eps: float, n_groups: int) -> Tensor:
    """See nano3.kernels.gated_rms_norm."""
    if z.shape != y.shape or not _takes(y, z, weight, n_groups):
        return EAGER["gated_rms_norm"](y, z, weight, eps, n_groups)
    return _norm(y, z, weight, eps, n_groups)


def _takes(y: Tensor, z: Tensor | None, weight: Tensor, n_groups: int) -> bool:
    D = y.shape[-1]
    return y.numel() > 0 and n_groups >= 1 and D // n_groups <= WIDEST and fits(y, z, weight) and shaped((weight, (D,)))


def _norm(y: Tensor, z: Tensor | None, weight: Tensor, eps: float, n_groups: int) -> Tensor:
    if wants_gradient(y, z, weight):
        return _Norm.apply(y, z, weight, eps, n_groups)
    return _forward(y, z, weight, eps, n_groups, None)


def _forward(y: Tensor, z: Tensor | None, weight: Tensor, eps: float, n_groups: int, rstd: Tensor | None) -> Tensor:
    width = y.shape[-1] // n_groups
    out = torch.empty(y.shape, dtype=y.dtype, device=y.device)
    rows, gates = dense_rows(y), None if z is None else dense_rows(z)
    launch(
        norm_kernel, (rows.shape[0], n_groups), rows, rows if gates is None else gates, weight.contiguous(), out,
        out if rstd is None else rstd, rows.stride(0), 0 if gates is None else gates.stride(0), y.shape[-1], width, eps,
        GATED=gates is not None, KEEP=rstd is not None, **_sizes(width),
    )  # fmt: skip
    return out


def _sizes(width: int) -> dict[str, int]:
    block = power_of_2(width)
    return {"BLOCK": block, "num_warps": min(max(block // 256, 1), 16)}


class _Norm(torch.autograd.Function):
    """Keeps the inputs and each group's factor."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, z: Tensor | None, weight: Tensor, eps: float, n_groups: int) -> Tensor:
        rstd = torch.empty((y.numel() // y.shape[-1], n_groups), dtype=torch.float32, device=y.device)
        out = _forward(y, z, weight, eps, n_groups, rstd)
        ctx.save_for_backward(y, z, weight, rstd)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor):
        y, z, weight, rstd = ctx.saved_tensors
        (count, n_groups), width = rstd.shape, weight.numel() // rstd.shape[1]
        dy = torch.empty(y.shape, dtype=y.dtype, device=y.device)
        dz = None if z is None else torch.empty(z.shape, dtype=z.dtype, device=y.device)
        share = -(-count // max(1, PROGRAMS // n_groups))
        parts = -(-count // share)
        dweight = torch.empty((parts, weight.numel()), dtype=torch.float32, device=y.device)
        rows, douts, gates = dense_rows(y), dense_rows(dout), None if z is None else dense_rows(z)
        launch(
            norm_backward_kernel, (parts, n_groups), rows, rows if gates is None else gates, weight.contiguous(), rstd,
            douts, dy, dy if dz is None else dz, dweight, count, share, rows.stride(0),
            0 if gates is None else gates.stride(0), douts.stride(0), width, GATED=gates is not None, **_sizes(width),
        )  # fmt: skip
        return dy, dz, dweight.sum(0).to(weight.dtype), None, None


def _plain_case(g: torch.Generator, dtype: torch.dtype) -> tuple:
    return normal(g, dtype, 3, 35), normal(g, dtype, 35), 1e-5


def _gated_case(g: torch.Generator, dtype: torch.dtype) -> tuple:
    return normal(g, dtype, 3, 38), normal(g, dtype, 3, 38), normal(g, dtype, 38), 1e-5, 2


KERNELS = {
    "rms_norm": Kernel(guarded(rms_norm, EAGER["rms_norm"]), "groups of up to 16384", _plain_case, True),
    "gated_rms_norm": Kernel(
        guarded(gated_rms_norm, EAGER["gated_rms_norm"]), "groups of up to 16384", _gated_case, True
    ),
}
