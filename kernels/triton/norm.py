"""Norms: one program for each group of a row, forward."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..eager import FUNCTIONS as EAGER
from .call import Kernel, dense_rows, fits, guarded, launch, normal, power_of_2, wants_gradient

WIDEST = 1 << 14
"""Most numbers of a group; one program holds them all in registers."""


@triton.jit
def norm_kernel(
    Y, Z, W, OUT, y_stride, z_stride, out_stride, width, eps, GATED: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """OUT = (y * silu(z) if GATED else y), normalised over one group of `width` numbers, times W."""
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = column < width
    column += tl.program_id(1) * width
    y = tl.load(Y + row * y_stride + column, mask=inside, other=0.0).to(tl.float32)
    if GATED:
        z = tl.load(Z + row * z_stride + column, mask=inside, other=0.0).to(tl.float32)
        y *= z * tl.sigmoid(z)
    rstd = 1 / tl.sqrt(tl.sum(y * y, 0) / width + eps)
    weight = tl.load(W + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(OUT + row * out_stride + column, (y * rstd * weight).to(OUT.dtype.element_ty), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See nano3.kernels.rms_norm."""
    if not _takes(x, None, weight, 1):
        return EAGER["rms_norm"](x, weight, eps)
    return _forward(x, None, weight, eps, 1)


def gated_rms_norm(y: Tensor, z: Tensor, weight: Tensor, eps: float, n_groups: int) -> Tensor:
    """See nano3.kernels.gated_rms_norm."""
    if z.shape != y.shape or not _takes(y, z, weight, n_groups):
        return EAGER["gated_rms_norm"](y, z, weight, eps, n_groups)
    return _forward(y, z, weight, eps, n_groups)


def _takes(y: Tensor, z: Tensor | None, weight: Tensor, n_groups: int) -> bool:
    small = y.numel() > 0 and n_groups >= 1 and y.shape[-1] // n_groups <= WIDEST
    return small and fits(y, z, weight) and not wants_gradient(y, z, weight)


def _forward(y: Tensor, z: Tensor | None, weight: Tensor, eps: float, n_groups: int) -> Tensor:
    width = y.shape[-1] // n_groups
    out = torch.empty(y.shape, dtype=y.dtype, device=y.device)
    rows, gates = dense_rows(y), None if z is None else dense_rows(z)
    block = power_of_2(width)
    launch(
        norm_kernel, (rows.shape[0], n_groups), rows, rows if gates is None else gates, weight.contiguous(), out,
        rows.stride(0), 0 if gates is None else gates.stride(0), y.shape[-1], width, eps, GATED=gates is not None,
        BLOCK=block, num_warps=min(max(block // 256, 1), 16),
    )  # fmt: skip
    return out


def _plain_case(g: torch.Generator, dtype: torch.dtype) -> tuple:
    return normal(g, dtype, 3, 35), normal(g, dtype, 35), 1e-5


def _gated_case(g: torch.Generator, dtype: torch.dtype) -> tuple:
    return normal(g, dtype, 3, 38), normal(g, dtype, 3, 38), normal(g, dtype, 38), 1e-5, 2


KERNELS = {
    "rms_norm": Kernel(guarded(rms_norm, EAGER["rms_norm"]), "passes without gradient", _plain_case),
    "gated_rms_norm": Kernel(guarded(gated_rms_norm, EAGER["gated_rms_norm"]), "passes without gradient", _gated_case),
}
