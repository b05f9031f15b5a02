"""Dense squared-ReLU MLP: the `-` block, and the shared expert of a mixture (report section 2.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nano3.kernels import squared_relu_mlp
from nano3.model.forward_pass import WHOLE, Pass
from nano3.model.layers import Linear, bare_weight
from nano3.model.state.block import BlockState


class MLP(nn.Module):
    """`down(relu(up(x))^2)`, ungated."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.up_proj = Linear(d_model, d_ff)
        self.down_proj = Linear(d_ff, d_model)

    def apply_to(self, x: Tensor) -> Tensor:
        """x (..., D) -> (..., D)."""
        up, down = bare_weight(self.up_proj), bare_weight(self.down_proj)
        if up is None or down is None:
            return self.down_proj(torch.relu(self.up_proj(x)).square())
        return squared_relu_mlp(x, up, down)

    def forward(self, x: Tensor, around: Pass = WHOLE, state: BlockState = None) -> tuple[Tensor, None]:
        """x (B, T, D) -> (B, T, D); acts on each token alone."""
        return self.apply_to(x), None
