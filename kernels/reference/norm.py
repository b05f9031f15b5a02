"""Root-mean-square norms (arXiv 1910.07467) and Mamba-2's gated, grouped one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common import accumulator


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See nano3.kernels.rms_norm."""
    wide = x.to(accumulator(x.dtype))
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.to(wide.dtype)).to(x.dtype)


def gated_rms_norm(y: Tensor, z: Tensor, weight: Tensor, eps: float, n_groups: int) -> Tensor:
    """See nano3.kernels.gated_rms_norm."""
    wide = accumulator(y.dtype)
    gated = (y.to(wide) * F.silu(z.to(wide))).unflatten(-1, (n_groups, -1))
    normed = gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + eps)
    return (normed.flatten(-2) * weight.to(wide)).to(y.dtype)
