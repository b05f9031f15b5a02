"""The two small layers that every block uses: bias-free linear and RMSNorm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nano3.kernels import linear, rms_norm


class Linear(nn.Module):
    """`y = x @ weight.T`, weight (out, in) cast to the dtype of `x`; no bias (report section 2.1)."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        return linear(x, self.weight)


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x (..., width) -> same shape and dtype."""
        return rms_norm(x, self.weight, self.eps)
