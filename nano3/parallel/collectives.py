"""Differentiable collectives. Every process of the group has to call each, in the forward and in the backward pass:
results must go into something that is differentiated on all of them, if only with a gradient of 0."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

# Their names from torch 2.13 on, where the older ones warn.
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_reduce_scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)


def all_to_all(rows: Tensor, sent: list[int], received: list[int], group: Any) -> Tensor:
    """rows (sum(sent), ...): the first sent[0] go to process 0 of `group`, the next sent[1] to process 1, and so on ->
    (sum(received), ...), those that come from each. Gradients go the way back."""
    return _AllToAll.apply(rows, sent, received, group)


def gather(x: Tensor, group: Any) -> Tensor:
    """x (...) of every process, of one shape -> (processes, ...). The gradient of x is the sum of those that all
    processes have for it."""
    return _Gather.apply(x, group)


def sum_parts(x: Tensor, group: Any) -> Tensor:
    """x (processes, ...) of every process -> (...): that part of the sum of all which is this process's, the first for
    process 0 of `group`, and so on. The gradient of x holds those that all processes have for their parts."""
    return _SumParts.apply(x, group)


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int], group: Any) -> Tensor:
        ctx.splits = sent, received, group
        return _swap(rows, sent, received, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor):
        sent, received, group = ctx.splits
        return _swap(gradient, received, sent, group), None, None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _gathered(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor):
        return _summed(gradient, ctx.group), None


class _SumParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _summed(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor):
        return _gathered(gradient, ctx.group), None


def _gathered(x: Tensor, group: Any) -> Tensor:
    """x (...) of every process -> (processes, ...)."""
    whole = x.new_empty((dist.get_world_size(group), *x.shape))
    _all_gather(whole.flatten(0, 1), x.contiguous(), group=group)
    return whole


def _summed(x: Tensor, group: Any) -> Tensor:
    """x (processes, ...) of every process -> the own part (...) of the sum, rounded once."""
    x = x.contiguous()
    if x.dtype.itemsize < torch.float32.itemsize:
        # A sum on the way would be rounded with every process, or travel in float32, twice as large.
        parts = torch.empty_like(x)
        dist.all_to_all_single(parts, x, group=group)
        return parts.sum(0, dtype=torch.float32).to(x.dtype)
    own = torch.empty_like(x[0])
    _reduce_scatter(own, x.flatten(0, 1), group=group)
    return own


def _swap(rows: Tensor, sent: list[int], received: list[int], group: Any) -> Tensor:
    result = rows.new_empty((sum(received), *rows.shape[1:]))
    dist.all_to_all_single(result, rows.contiguous(), received, sent, group=group)
    return result
