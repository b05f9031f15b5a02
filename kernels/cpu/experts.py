"""Routed experts in C++."""

from __future__ import annotations

import torch
from torch import Tensor

from ..eager import FUNCTIONS as EAGER
from .call import I, Kernel, L, P, declare, normal, plain, run
from .native import TYPES

MOST_TOKENS = 64
"""More tokens go to PyTorch."""
declare(grouped_mlp=(P, I, P, P, I, P, P, L, L, L, L, L, P))


def grouped_mlp(x: Tensor, up: Tensor, down: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
    """See nano3.kernels.grouped_mlp."""
    tokens, chosen = expert_ids.shape
    n_experts, hidden, width = up.shape
    fits = 0 < tokens <= MOST_TOKENS and chosen and up.dtype == down.dtype and weights.dtype == torch.float32
    fits = fits and x.shape == (tokens, width) and down.shape == (n_experts, width, hidden)
    fits = fits and weights.shape == expert_ids.shape
    if not fits or not plain(x, up, down, weights):
        return EAGER["grouped_mlp"](x, up, down, expert_ids, weights)
    y, expert_ids = torch.empty_like(x), expert_ids.contiguous()
    done = run(
        "grouped_mlp", x.data_ptr(), TYPES[x.dtype], up.data_ptr(), down.data_ptr(), TYPES[up.dtype],
        expert_ids.data_ptr(), weights.data_ptr(), tokens, chosen, n_experts, hidden, width, y.data_ptr(),
    )  # fmt: skip
    return y if done else EAGER["grouped_mlp"](x, up, down, expert_ids, weights)


def _experts(g: torch.Generator, dtype: torch.dtype) -> tuple:
    ids = torch.tensor([[0, 2], [2, 1], [2, 0], [4, 2]])
    weights = torch.rand(4, 2, generator=g)
    return normal(g, dtype, 4, 19), normal(g, dtype, 5, 33, 19), normal(g, dtype, 5, 19, 33), ids, weights


KERNELS = {"grouped_mlp": Kernel(grouped_mlp, f"up to {MOST_TOKENS} tokens", _experts)}
