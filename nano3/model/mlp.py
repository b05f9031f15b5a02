"""Dense squared-ReLU MLP: the `-` block, and the shared expert of a mixture (report section 2.1)."""

from __future__ import annotations

from torch import Tensor, nn

from nano3.kernels import squared_relu_mlp
from nano3.model.layers import Linear
from nano3.model.state import BlockState


class MLP(nn.Module):
    """`down(relu(up(x))^2)`, ungated."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.up_proj = Linear(d_model, d_ff)
        self.down_proj = Linear(d_ff, d_model)

    def apply_to(self, x: Tensor) -> Tensor:
        """x (..., D) -> (..., D)."""
        return squared_relu_mlp(x, self.up_proj.weight, self.down_proj.weight)

    def forward(self, x: Tensor, document_ids: Tensor | None = None, state: BlockState = None) -> tuple[Tensor, None]:
        """x (B, T, D) -> (B, T, D); acts on each token alone."""
        return self.apply_to(x), None
