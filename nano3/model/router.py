"""Sigmoid router with a selection bias (report section 2.1; aux-loss-free balancing, arXiv 2408.15664)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from nano3.config.model import ModelConfig
from nano3.kernels import route


class RouterStats:
    """What one mixture block reports about its routing, computed when it is asked for."""

    def __init__(self, scores: Tensor, expert_ids: Tensor) -> None:
        self._scores, self._expert_ids = scores, expert_ids

    @cached_property
    def load(self) -> Tensor:
        """(E,) int64: tokens routed to each expert."""
        chosen = self._expert_ids.flatten()
        # Not bincount, which makes the CPU wait for a GPU; integer sums are exact in any order.
        load = torch.zeros(self._scores.shape[1], dtype=torch.int64, device=chosen.device)
        return load.scatter_add_(0, chosen, torch.ones_like(chosen))

    @cached_property
    def balance_loss(self) -> Tensor:
        """Scalar: E * sum_e f_e P_e, 1 when routing is even."""
        fraction = self.load.to(self._scores.dtype) / self._expert_ids.numel()
        return self._scores.shape[1] * torch.dot(fraction, self.probabilities.mean(0))

    @property
    def probabilities(self) -> Tensor:
        """(S, E): each token's scores over their sum."""
        return self._scores / self._scores.sum(-1, keepdim=True)


@dataclass
class Routing:
    """Decision for S tokens."""

    expert_ids: Tensor
    """(S, K) int64 chosen experts."""
    weights: Tensor
    """(S, K) float32 weights of the chosen experts, summing to routed_scale."""
    stats: RouterStats


class Router(nn.Module):
    """Scores in float32; the bias takes part in the choice only, never in the weights."""

    e_score_correction_bias: Tensor

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.top_k, self.scale = cfg.top_k, cfg.routed_scale
        self.weight = nn.Parameter(torch.empty(cfg.n_experts, cfg.d_model))
        self.register_buffer("e_score_correction_bias", torch.zeros(cfg.n_experts))

    def forward(self, x: Tensor) -> Routing:
        """x (S, D) -> Routing; softmax-free: each expert's score is its own sigmoid."""
        expert_ids, weights, scores = route(x, self.weight, self.e_score_correction_bias, self.top_k, self.scale)
        return Routing(expert_ids, weights, RouterStats(scores, expert_ids))
