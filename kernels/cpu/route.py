"""The router in C++."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..eager import FUNCTIONS as EAGER
from .call import F, I, Kernel, L, P, declare, empty, normal, readable, run
from .native import TYPES

MOST_ROWS = 64
"""The products of more rows go to PyTorch."""
declare(
    route=(P, I, P, I, P, L, L, L, L, F, P, P, P),
    route_backward=(P, P, P, P, L, L, L, F, P),
)
Routed = tuple[Tensor, Tensor, Tensor]


def route(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scale: float) -> Routed:
    """See nano3.kernels.route."""
    fits = x.dim() == 2 and weight.dim() == 2 and x.shape[1] == weight.shape[1] and bias.shape == weight.shape[:1]
    fits = fits and x.numel() and bias.dtype == torch.float32 and 0 < top_k <= weight.shape[0]
    if not fits or not readable(x, weight, bias) or torch.compiler.is_compiling():
        return EAGER["route"](x, weight, bias, top_k, scale)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _Route.apply(x, weight, bias, top_k, scale)
    return _forward(x, weight, bias, top_k, scale)


def _forward(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scale: float) -> Routed:
    (S, D), E = x.shape, weight.shape[0]
    few, bias = S <= MOST_ROWS, bias.contiguous()
    if few:
        x, weight, scores = x.contiguous(), weight.contiguous(), empty(S, E)
    else:
        scores = torch.mm(x.float(), weight.float().t())
    expert_ids, weights = empty(S, top_k, dtype=torch.int64), empty(S, top_k)
    done = run(
        "route", x.data_ptr() if few else None, TYPES[x.dtype], weight.data_ptr(), TYPES[weight.dtype],
        bias.data_ptr(), S, D, E, top_k, scale, scores.data_ptr(), expert_ids.data_ptr(), weights.data_ptr(),
    )  # fmt: skip
    return (expert_ids, weights, scores) if done else EAGER["route"](x, weight, bias, top_k, scale)


class _Route(torch.autograd.Function):
    """Keeps the input, the scores and the choice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scale: float) -> Routed:
        expert_ids, weights, scores = _forward(x, weight, bias, top_k, scale)
        ctx.save_for_backward(x, weight, expert_ids, scores)
        ctx.scale = scale
        ctx.mark_non_differentiable(expert_ids)
        ctx.set_materialize_grads(False)
        return expert_ids, weights, scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: None, dweights: Tensor | None, dscores: Tensor | None):
        x, weight, expert_ids, scores = ctx.saved_tensors
        if dweights is None and dscores is None:
            return None, None, None, None, None
        dproducts = torch.empty_like(scores)
        grads = [None if g is None else g.contiguous() for g in (dweights, dscores)]
        pointers = [None if g is None else g.data_ptr() for g in grads]
        run(
            "route_backward", scores.data_ptr(), expert_ids.data_ptr(), *pointers, *scores.shape, expert_ids.shape[1],
            ctx.scale, dproducts.data_ptr(),
        )  # fmt: skip
        dx = dweight = None
        if ctx.needs_input_grad[0]:
            dx = torch.mm(dproducts, weight.float()).to(x.dtype)
        if ctx.needs_input_grad[1]:
            dweight = torch.mm(dproducts.t(), x.float()).to(weight.dtype)
        return dx, dweight, None, None, None


def _case(g: torch.Generator, dtype: torch.dtype) -> tuple:
    return normal(g, dtype, 5, 19), normal(g, dtype, 21, 19), normal(g, torch.float32, 21), 3, 2.5


KERNELS = {"route": Kernel(route, "any number of tokens, forward and backward", _case, differentiable=True)}
