"""Mixture of experts: routed experts beside an always-on shared one (report section 2.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nano3.config.model import ModelConfig
from nano3.kernels import Scaled, Weight, grouped_mlp
from nano3.kernels.scaled import E4M3
from nano3.model.forward_pass import WHOLE, Pass
from nano3.model.layers import hold_scaled, scaled
from nano3.model.mlp import MLP
from nano3.model.router import Router, RouterStats
from nano3.model.state.block import BlockState


class Experts(nn.Module):
    """All routed experts: up_proj (E, F, D) and down_proj (E, D, F).

    `forward` is the only way in, and where expert parallelism or adapters take hold. Quantized ones (`use_scaled`) hold
    stored numbers in their parameters, and buffers `up_proj_scale`, perhaps `up_proj_input_scale`, and so on, with one
    number or row of numbers an expert.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.up_proj = nn.Parameter(torch.empty(cfg.n_experts, cfg.d_expert, cfg.d_model))
        self.down_proj = nn.Parameter(torch.empty(cfg.n_experts, cfg.d_model, cfg.d_expert))

    def forward(self, x: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
        """x (S, D), the experts (S, K) int64 of each token and their weights (S, K) -> (S, D), summed over experts."""
        return grouped_mlp(x, self.operand("up_proj"), self.operand("down_proj"), expert_ids, weights)

    def operand(self, name: str) -> Weight:
        """What ops multiply by: `up_proj` or `down_proj`, with its scales where it is quantized."""
        return scaled(getattr(self, name), self._buffers, f"{name}_scale", f"{name}_input_scale")

    def use_scaled(self, name: str, weight: Scaled) -> None:
        """Multiply by this weight in the place of `up_proj` or `down_proj` from now on.

        Raises:
            ValueError: it has another shape.
        """
        if weight.dtype == E4M3:
            given, experts = weight.input_scale, len(weight.data)
            given = None if given is None else given.expand(experts)
            weight = Scaled(weight.data, weight.scale.expand(experts), given)
        hold_scaled(self, name, weight, f"{name}_scale", f"{name}_input_scale")


class MoE(nn.Module):
    """Sum of the chosen experts, weighted by the router, and the shared expert."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.gate = Router(cfg)
        self.experts = Experts(cfg)
        self.shared_experts = MLP(cfg.d_model, cfg.d_shared) if cfg.d_shared else None

    def forward(self, x: Tensor, around: Pass = WHOLE, state: BlockState = None) -> tuple[Tensor, RouterStats]:
        """x (B, T, D) -> (B, T, D), 0 at padding, and the routing statistics; acts on each token alone."""
        B, T, _ = x.shape
        tokens = around.pick(x)  # (S, D)
        routed = tokens.view_as(tokens)  # a node of its own: gradients of gate and experts meet before the shared one's
        routing = self.gate(routed, None if around.routing is None else around.pick(around.routing))
        y = self.experts(routed, routing.expert_ids, routing.weights)
        if self.shared_experts is not None:
            y = y + self.shared_experts.apply_to(tokens)
        return around.spread(y, (B, T)), RouterStats(routing.scores, routing.expert_ids, (B, T), around)
