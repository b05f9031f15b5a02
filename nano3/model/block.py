"""One block: `x + mixer(RMSNorm(x))`, the mixer chosen by its symbol in the pattern (report Figure 2)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from nano3.config.model import ATTENTION, MAMBA, MLP, MOE, ModelConfig
from nano3.model.attention import Attention
from nano3.model.chunked.block import run_in_pieces
from nano3.model.forward_pass import WHOLE, Pass
from nano3.model.layers import RMSNorm
from nano3.model.mamba2 import Mamba2
from nano3.model.mlp import MLP as DenseMLP
from nano3.model.moe import MoE
from nano3.model.router import RouterStats
from nano3.model.state.block import BlockState

MIXERS: dict[str, Callable[[ModelConfig], nn.Module]] = {
    MAMBA: Mamba2,
    MOE: MoE,
    ATTENTION: Attention,
    MLP: lambda cfg: DenseMLP(cfg.d_model, cfg.d_ff),
}


class Block(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, cfg: ModelConfig, symbol: str) -> None:
        super().__init__()
        self.symbol = symbol
        self.norm = RMSNorm(cfg.d_model, cfg.norm_eps)
        self.mixer = MIXERS[symbol](cfg)

    def forward(
        self,
        x: Tensor,
        around: Pass = WHOLE,
        state: BlockState = None,
        most_tokens: int = 0,
    ) -> tuple[Tensor, RouterStats | None]:
        """x (B, T, D) -> (B, T, D), and routing statistics from a mixture block.

        With `most_tokens` in pieces of no more than these, which the backward pass computes again; see
        nano3.model.chunked.block.
        """
        if most_tokens:
            return run_in_pieces(self, x, around, most_tokens)
        y, stats = self.mixer(self.norm(x), around, state)
        return x + y, stats
