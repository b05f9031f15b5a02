"""Sigmoid router with a selection bias (report section 2.1; aux-loss-free balancing, arXiv 2408.15664)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from nano3.config.model import ModelConfig
from nano3.kernels import route
from nano3.model.forward_pass import WHOLE, Pass, Statistic

TINY = 1e-20
"""Added to sums of scores, which may all underflow, before they divide."""


class RouterStats:
    """What one mixture block reports about the routing of B rows, computed when it is asked for. Padding is no token:
    it is in no load, sum or mean."""

    def __init__(self, scores: Tensor, expert_ids: Tensor, shape: tuple[int, int], around: Pass = WHOLE) -> None:
        """From scores (S, E) and expert_ids (S, K) of the valid tokens of rows of `shape` (B, T)."""
        self._scores, self._expert_ids, self._shape, self._around = scores, expert_ids, shape, around
        self.top_k = expert_ids.shape[1]

    @cached_property
    def load(self) -> Tensor:
        """(E,) int64: tokens routed to each expert."""
        chosen = self._expert_ids.flatten()
        # Not bincount, which makes the CPU wait for a GPU; integer sums are exact in any order.
        load = torch.zeros(self._scores.shape[1], dtype=torch.int64, device=chosen.device)
        return load.scatter_add_(0, chosen, torch.ones_like(chosen))

    @cached_property
    def row_choices(self) -> Tensor:
        """(B, E) int64: tokens of each row that would be routed to each expert if the scores alone chose, without the
        selection bias."""
        return self._count_by_row(self._scores.detach().topk(self.top_k, dim=-1).indices)

    @cached_property
    def expert_ids(self) -> Tensor:
        """(B, T, K) int64: the chosen experts, -1 at padding."""
        return self._around.spread(self._expert_ids, self._shape, -1)

    # Not kept: a first look without gradients would take them from every later one.
    @property
    def probability(self) -> Tensor:
        """(E,): each token's scores over their sum, summed over tokens."""
        return self._probabilities.sum(0)

    @property
    def row_probability(self) -> Tensor:
        """(B, E): as `probability`, of each row."""
        return self._around.spread(self._probabilities, self._shape).sum(1)

    @property
    def balance_loss(self) -> Tensor:
        """Scalar: E * sum_e f_e P_e over all tokens together, with f_e the share of choices and P_e the mean share of
        scores; 1 when routing is even, 0 without tokens. The choices are those really made, with the selection bias
        (as in Switch Transformer, arXiv 2101.03961); Megatron counts those that the scores alone would make."""
        return self.balance(self.load)

    @property
    def sequence_balance_loss(self) -> Tensor:
        """Scalar: E * sum_e f_e P_e of each row alone, averaged over the rows that have tokens (report section 3.1.6;
        Megatron's seq_aux_loss, whose sequence is the packed row too). As there, f_e is the share of the choices that
        the scores alone would make: once the selection bias has evened the loads, those really made say nothing."""
        return self.sequence_balance(self.row_choices)

    def balance(self, load: Tensor) -> Tensor:
        """`balance_loss` for loads (E,): the own ones. Or, where the tokens are a slice of longer rows, those of all
        slices together: then the losses of all slices add up to that of the whole, their gradients too."""
        fraction, probability = _shares(load, self.probability, self.top_k)
        return len(load) * torch.dot(fraction, probability)

    def sequence_balance(self, row_choices: Tensor) -> Tensor:
        """`sequence_balance_loss` for choices (B, E), in the same way."""
        fraction, probability = _shares(row_choices, self.row_probability, self.top_k)
        rows = (row_choices.sum(1) > 0).sum().clamp_min(1)
        return row_choices.shape[1] * (fraction * probability).sum() / rows

    def _count_by_row(self, chosen: Tensor) -> Tensor:
        """(B, E) int64: how often each row's tokens have each expert among `chosen` (S, K)."""
        (B, T), E, own = self._shape, self._scores.shape[1], self._around.places
        places = torch.arange(B * T, device=self._scores.device) if own is None else own.flat
        cells = ((places // max(T, 1)).unsqueeze(1) * E + chosen).flatten()
        counts = torch.zeros(B * E, dtype=torch.int64, device=cells.device)
        return counts.scatter_add_(0, cells, torch.ones_like(cells)).view(B, E)

    @property
    def _probabilities(self) -> Tensor:
        """(S, E)."""
        return self._scores / (self._scores.sum(-1, keepdim=True) + TINY)


SUMS: dict[Statistic, tuple[str, ...]] = {
    "loads": ("load",),
    "balance_loss": ("load", "probability"),
    "sequence_balance_loss": ("row_choices", "row_probability"),
}
"""What each statistic is made of: properties of RouterStats."""


class MergedStats(RouterStats):
    """Statistics of several parts of a pass together."""

    def __init__(self, sums: Mapping[str, Tensor], top_k: int) -> None:
        """From those that were kept of all parts, by the names of RouterStats' properties."""
        self.top_k, self._sums = top_k, sums
        counts = ("load", "row_choices", "expert_ids")
        vars(self).update({name: sums[name] for name in counts if name in sums})

    @property
    def probability(self) -> Tensor:
        return self._sums["probability"]

    @property
    def row_probability(self) -> Tensor:
        return self._sums["row_probability"]


def _shares(load: Tensor, probability: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """f and P (..., E) from load (..., E) int64 and sums of probabilities (..., E); 0 where there are no tokens."""
    choices = load.sum(-1, keepdim=True).clamp_min(1)
    return load.to(probability.dtype) / choices, probability / (choices / top_k)


@dataclass
class Routing:
    """Decision for the S valid tokens of a pass."""

    expert_ids: Tensor
    """(S, K) int64 chosen experts."""
    weights: Tensor
    """(S, K) float32 weights of the chosen experts, summing to routed_scale."""
    scores: Tensor
    """(S, E) float32."""


class Router(nn.Module):
    """Scores in float32; the bias takes part in the choice only, never in the weights."""

    e_score_correction_bias: Tensor

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.top_k, self.scale = cfg.top_k, cfg.routed_scale
        self.weight = nn.Parameter(torch.empty(cfg.n_experts, cfg.d_model))
        self.register_buffer("e_score_correction_bias", torch.zeros(cfg.n_experts))

    def forward(self, x: Tensor, given: Tensor | None = None) -> Routing:
        """x (S, D) -> Routing; softmax-free: each expert's score is its own sigmoid.

        Args:
            x: (S, D).
            given: (S, K) experts to use instead of choosing (router replay); their weights follow from today's scores.
        """
        expert_ids, weights, scores = route(x, self.weight, self.e_score_correction_bias, self.top_k, self.scale)
        if given is not None:
            expert_ids = given.long()
            chosen = scores.gather(1, expert_ids)
            weights = chosen / (chosen.sum(-1, keepdim=True) + TINY) * self.scale
        return Routing(expert_ids, weights, scores)
