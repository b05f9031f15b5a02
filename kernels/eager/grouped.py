"""Routed experts: tokens sorted by expert, one dense product an expert (CPU) or one grouped product (CUDA)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..common import accumulator, matmul_dtype
from ..narrow import narrowed
from ..scaled import Scaled, Weight
from .experts import squared_relu_mlp

ALIGNED = 16
"""Bytes of which a row's width is a multiple where `torch.nn.functional.grouped_mm` takes it."""
LEAVES_UNUSED = (10, 0)
"""Compute capability (Blackwell's) from which its products of no rows may be any numbers: pytorch issue 172439, open
since 2026-01."""


def grouped_mlp(x: Tensor, up: Weight, down: Weight, expert_ids: Tensor, weights: Tensor) -> Tensor:
    """See nano3.kernels.grouped_mlp."""
    if isinstance(up, Scaled) or isinstance(down, Scaled):
        return _scaled_experts(x, up, down, expert_ids, weights)
    grouped = x.device.type != "cpu" and takes_grouped(x.dtype, *up.shape[1:])
    function = GroupedExperts if grouped else _LoopedExperts
    return function.apply(x, up, down, expert_ids, weights)


def takes_grouped(dtype: torch.dtype, *widths: int) -> bool:
    """Whether `grouped_mm` multiplies numbers of a type in rows of these widths."""
    return dtype != torch.float64 and all(width * dtype.itemsize % ALIGNED == 0 for width in widths)


def leaves_unused(device: torch.device) -> bool:
    """Whether the gradient of a matrix that has no row is to be made zero."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= LEAVES_UNUSED


def _of_used(gradients: Tensor, ends: Tensor) -> Tensor:
    """Gradients (E, ...) of matrices whose rows end at `ends`: of one without rows, 0."""
    if leaves_unused(gradients.device):
        gradients.masked_fill_((ends.diff(prepend=ends.new_zeros(1)) == 0)[:, None, None], 0)
    return gradients


class _Routes(NamedTuple):
    """Choices sorted by expert; row i of a sorted array is choice order[i] of the flat (S*K,) choices."""

    order: Tensor
    tokens: Tensor
    """(S*K,) token of each row."""
    ends: Tensor
    """(E,) where each expert's rows end."""
    gates: Tensor
    """(S*K, 1) routing weight of each row."""


def _routes(expert_ids: Tensor, weights: Tensor, n_experts: int, dtype: torch.dtype) -> _Routes:
    flat = expert_ids.flatten()
    order = flat.argsort(stable=True)
    # Not bincount, which makes the CPU wait for a GPU; integer sums are exact in any order.
    counts = torch.zeros(n_experts, dtype=torch.int64, device=flat.device).scatter_add_(0, flat, torch.ones_like(flat))
    ends = counts.cumsum(0)
    return _Routes(order, order // expert_ids.shape[1], ends, weights.flatten()[order].to(dtype).unsqueeze(1))


def _expert_slices(ends: Tensor) -> list[tuple[int, slice]]:
    """(expert, rows) of each expert that has rows."""
    bounds = [0, *ends.tolist()]
    return [(e, slice(a, b)) for e, (a, b) in enumerate(pairwise(bounds)) if b > a]


def _scaled_experts(x: Tensor, up: Weight, down: Weight, expert_ids: Tensor, weights: Tensor) -> Tensor:
    """One expert after the other; a token's weight comes last, after what its expert's scales were made for."""
    routes = _routes(expert_ids, weights, up.shape[0], accumulator(x.dtype))
    total = torch.zeros(x.shape, dtype=accumulator(x.dtype), device=x.device)
    for e, part in _expert_slices(routes.ends):
        tokens = routes.tokens[part]
        y = squared_relu_mlp(x[tokens], up[e], down[e])
        total = total.index_add(0, tokens, y.to(total.dtype) * routes.gates[part])
    return total.to(x.dtype)


class _LoopedExperts(torch.autograd.Function):
    """A loop over experts with reused buffers; keeps the input and the hidden values before the activation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, down: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
        product = matmul_dtype(x.dtype, x.device)
        routes = _routes(expert_ids, weights, up.shape[0], accumulator(x.dtype))
        parts = _expert_slices(routes.ends)
        most = max((part.stop - part.start for _, part in parts), default=0)
        source, total = x.to(product), torch.zeros(x.shape, dtype=accumulator(x.dtype), device=x.device)
        hidden = torch.empty(routes.order.numel(), up.shape[1], dtype=product, device=x.device)
        rows, active, out = _buffers(hidden, most, (x.shape[1], up.shape[1], x.shape[1]))
        for e, part in parts:
            n, tokens = part.stop - part.start, routes.tokens[part]
            torch.index_select(source, 0, tokens, out=rows[:n])
            torch.mm(rows[:n], up[e].to(product).t(), out=hidden[part])
            torch.clamp_min(hidden[part], 0, out=active[:n]).square_().mul_(routes.gates[part])
            torch.mm(active[:n], down[e].to(product).t(), out=out[:n])
            total.index_add_(0, tokens, out[:n].to(total.dtype))
        ctx.save_for_backward(x, up, down, expert_ids, weights, hidden.to(x.dtype))
        return total.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor):
        x, up, down, expert_ids, weights, hidden = ctx.saved_tensors
        product = matmul_dtype(x.dtype, x.device)
        routes = _routes(expert_ids, weights, up.shape[0], accumulator(x.dtype))
        parts = _expert_slices(routes.ends)
        most = max((part.stop - part.start for _, part in parts), default=0)
        source, dsource = x.to(product), dout.to(product)
        dx = torch.zeros(x.shape, dtype=accumulator(x.dtype), device=x.device)
        dup, ddown = torch.zeros_like(up, dtype=product), torch.zeros_like(down, dtype=product)
        dgates = torch.zeros_like(routes.gates).squeeze(1)
        D, width = up.shape[2], up.shape[1]
        rows, drows, positive, dactive = _buffers(source, most, (D, D, width, width))
        for e, part in parts:
            n, tokens, gates = part.stop - part.start, routes.tokens[part], routes.gates[part]
            torch.index_select(source, 0, tokens, out=rows[:n])
            torch.index_select(dsource, 0, tokens, out=drows[:n])
            torch.clamp_min(hidden[part].to(product), 0, out=positive[:n])
            torch.mm(drows[:n], down[e].to(product), out=dactive[:n])
            active = positive[:n].square()
            torch.sum(dactive[:n] * active, dim=1, dtype=dgates.dtype, out=dgates[part])
            torch.mm(drows[:n].t(), active.mul_(gates), out=ddown[e])
            dactive[:n].mul_(positive[:n]).mul_(2 * gates)
            torch.mm(dactive[:n].t(), rows[:n], out=dup[e])
            torch.mm(dactive[:n], up[e].to(product), out=drows[:n])
            dx.index_add_(0, tokens, drows[:n].to(dx.dtype))
        dweights = torch.empty_like(dgates).index_copy_(0, routes.order, dgates).view_as(weights)
        return dx.to(x.dtype), dup.to(up.dtype), ddown.to(down.dtype), None, dweights.to(weights.dtype)


def _buffers(like: Tensor, rows: int, widths: tuple[int, ...]) -> list[Tensor]:
    return [like.new_empty(rows, width) for width in widths]


class GroupedExperts(torch.autograd.Function):
    """One grouped product a layer, without a wait for the counts; what CUDA runs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, down: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
        routes = _routes(expert_ids, weights, up.shape[0], accumulator(x.dtype))
        ends = routes.ends.to(torch.int32)
        hidden = F.grouped_mm(x[routes.tokens], narrowed(up, x.dtype).transpose(1, 2), offs=ends)
        out = F.grouped_mm(F.relu(hidden).square_(), narrowed(down, x.dtype).transpose(1, 2), offs=ends)
        total = torch.zeros(x.shape, dtype=accumulator(x.dtype), device=x.device)
        total.index_add_(0, routes.tokens, out * routes.gates)
        ctx.save_for_backward(x, up, down, expert_ids, weights, hidden)
        return total.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor):
        x, up, down, expert_ids, weights, hidden = ctx.saved_tensors
        routes = _routes(expert_ids, weights, up.shape[0], accumulator(x.dtype))
        ends = routes.ends.to(torch.int32)
        drows, positive = dout[routes.tokens], F.relu(hidden)
        dactive = F.grouped_mm(drows, narrowed(down, x.dtype), offs=ends)
        active, dup, ddown = positive.square(), None, None
        dgates = (dactive * active.to(routes.gates.dtype)).sum(1)
        if ctx.needs_input_grad[2]:
            ddown = F.grouped_mm(drows.t(), (active * routes.gates).to(x.dtype), offs=ends)
            ddown = _of_used(ddown, ends).to(down.dtype)
        dhidden = (dactive * positive * (2 * routes.gates)).to(x.dtype)
        if ctx.needs_input_grad[1]:
            dup = _of_used(F.grouped_mm(dhidden.t(), x[routes.tokens], offs=ends), ends).to(up.dtype)
        dx = torch.zeros(x.shape, dtype=accumulator(x.dtype), device=x.device)
        dx.index_add_(0, routes.tokens, F.grouped_mm(dhidden, narrowed(up, x.dtype), offs=ends).to(dx.dtype))
        dweights = torch.empty_like(dgates).index_copy_(0, routes.order, dgates).view_as(weights)
        return dx.to(x.dtype), dup, ddown, None, dweights.to(weights.dtype)
