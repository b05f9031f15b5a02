"""Sigmoid router with a selection bias (report section 2.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..common import accumulator


def route(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """See nano3.kernels.route."""
    scores = torch.sigmoid(_products(x, weight))  # (S, E)
    expert_ids = torch.topk(scores.detach() + bias.detach(), top_k, dim=-1).indices
    weights = scores.gather(1, expert_ids)
    return expert_ids, weights / (weights.sum(-1, keepdim=True) + 1e-20) * scale, scores


def _products(x: Tensor, weight: Tensor) -> Tensor:
    wide = accumulator(x.dtype)
    return x @ weight.to(wide).T if x.dtype == wide else _WideProducts.apply(x, weight)


class _WideProducts(torch.autograd.Function):
    """x @ weight.T in fp32; keeps the narrow x, not its wide copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x.float() @ weight.float().T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dproducts: Tensor):
        x, weight = ctx.saved_tensors
        dx = dweight = None
        if ctx.needs_input_grad[0]:
            dx = (dproducts @ weight.float()).to(x.dtype)
        if ctx.needs_input_grad[1]:
            dweight = (dproducts.T @ x.float()).to(weight.dtype)
        return dx, dweight
