"""The router behind its products, forward: sigmoid, choice and weights of some tokens in one program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..eager import FUNCTIONS as EAGER
from .call import INTERPRETED, Kernel, fits, guarded, launch, normal, power_of_2, shaped, wants_gradient

TOKENS = 16 if INTERPRETED else 4
"""Tokens that a program takes."""
MOST_EXPERTS, MOST_CHOSEN = 1024, 32
"""The program holds all experts' scores and unrolls the loop over the chosen ones."""


@triton.jit
def route_kernel(
    PRODUCTS, BIAS, IDS, WEIGHTS, SCORES, S, E, row, scale,
    K: tl.constexpr, TOKENS: tl.constexpr, EXPERTS: tl.constexpr, CHOSEN: tl.constexpr,
):  # fmt: skip
    """SCORES = sigmoid(PRODUCTS); IDS = the K largest of SCORES + BIAS, of equal ones the lowest; WEIGHTS sum to
    `scale`."""
    s = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    e, k = tl.arange(0, EXPERTS), tl.arange(0, CHOSEN)
    inside = (s < S)[:, None] & (e < E)[None, :]
    scores = tl.sigmoid(tl.load(PRODUCTS + s[:, None] * row + e[None, :], mask=inside, other=0.0))
    tl.store(SCORES + s[:, None] * E + e[None, :], scores, mask=inside)
    left = scores + tl.load(BIAS + e, mask=e < E, other=0.0).to(tl.float32)[None, :]
    left = tl.where(left == left, tl.maximum(left, -3e38), float("inf"))  # noqa: PLR0124 (a nan is the largest; -inf: taken)
    left = tl.where((e < E)[None, :], left, float("-inf"))
    ids, weights = tl.zeros((TOKENS, CHOSEN), tl.int32), tl.zeros((TOKENS, CHOSEN), tl.float32)
    for n in tl.static_range(K):  # type: ignore[misc]
        best = tl.argmax(left, 1)
        here = e[None, :] == best[:, None]
        chosen = tl.sum(tl.where(here, scores, 0.0), 1)
        left = tl.where(here, float("-inf"), left)
        ids = tl.where((k == n)[None, :], best[:, None], ids)
        weights = tl.where((k == n)[None, :], tl.expand_dims(chosen, 1), weights)
    weights = weights / tl.expand_dims(tl.sum(weights, 1) + 1e-20, 1) * scale
    at, kept = s[:, None] * K + k[None, :], (s < S)[:, None] & (k < K)[None, :]
    tl.store(IDS + at, ids.to(tl.int64), mask=kept)
    tl.store(WEIGHTS + at, weights, mask=kept)


def route(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """See nano3.kernels.route."""
    experts = weight.shape[0]
    sizes = x.numel() > 0 and 0 < top_k <= MOST_CHOSEN and experts <= MOST_EXPERTS
    if not sizes or not fits(x, weight, bias) or not shaped((bias, (experts,))) or wants_gradient(x, weight):
        return EAGER["route"](x, weight, bias, top_k, scale)
    products = x.float() @ weight.float().T
    return choose_experts(products, bias.contiguous(), top_k, scale)


def choose_experts(products: Tensor, bias: Tensor, top_k: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """`route` from products (S, E) fp32."""
    S, E = products.shape
    ids = torch.empty((S, top_k), dtype=torch.int64, device=products.device)
    weights = torch.empty((S, top_k), dtype=torch.float32, device=products.device)
    scores = torch.empty((S, E), dtype=torch.float32, device=products.device)
    launch(
        route_kernel, (-(-S // TOKENS),), products, bias, ids, weights, scores, S, E, products.stride(0), float(scale),
        K=top_k, TOKENS=TOKENS, EXPERTS=power_of_2(E), CHOSEN=power_of_2(top_k), num_warps=4,
    )  # fmt: skip
    return ids, weights, scores


def _case(g: torch.Generator, dtype: torch.dtype) -> tuple:
    return normal(g, dtype, 5, 12), normal(g, dtype, 9, 12), normal(g, torch.float32, 9), 3, 2.5


KERNELS = {"route": Kernel(guarded(route, EAGER["route"]), "passes without gradient", _case)}
