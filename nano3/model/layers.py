"""The two small layers that every block uses: bias-free linear and RMSNorm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nano3.kernels import linear, rms_norm


class Linear(nn.Module):
    """`y = x @ weight.T`, weight (out, in) cast to the dtype of `x`; no bias (report section 2.1).

    `forward` is the only way in: a module that wraps or replaces a Linear (an adapter, a sharded or a quantized one)
    is asked by every part of nano3. Ops that fuse the product with something else ask `bare_weight`.
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        return linear(x, self.weight)


def bare_weight(module: nn.Module) -> Tensor | None:
    """What a Linear multiplies by, for ops that do more than its product; None where the module computes anything
    else, or has hooks, and must be called."""
    if type(module) is not Linear or module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
        return None
    if module._backward_hooks or module._backward_pre_hooks:
        return None
    return module.weight


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x (..., width) -> same shape and dtype."""
        return rms_norm(x, self.weight, self.eps)
