"""Routed experts: few tokens wholly in C++; many with PyTorch's products and C++ around them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..common import matmul_dtype
from ..eager import FUNCTIONS as EAGER
from ..scaled import Scaled, Weight
from .call import I, Kernel, L, P, declare, empty, integers, normal, plain, readable, run
from .native import TYPES
from .products import activate, activate_backward, cast, cast_buffer, pieces
from .rounded import products as rounded

MOST_TOKENS = 64
"""The products of more tokens go to PyTorch."""
declare(
    grouped_mlp=(P, I, P, P, I, P, P, L, L, L, L, L, P),
    group_choices=(P, L, L, L, P, P, P),
    gather_rows=(P, I, P, L, L, L, P, I),
    scatter_rows=(P, I, P, L, P, L, L, P),
)


def grouped_mlp(x: Tensor, up: Weight, down: Weight, expert_ids: Tensor, weights: Tensor) -> Tensor:
    """See nano3.kernels.grouped_mlp."""
    if isinstance(up, Scaled) or isinstance(down, Scaled):
        y = None
        if isinstance(up, Scaled) and isinstance(down, Scaled):
            y = rounded.grouped_mlp(x, up, down, expert_ids, weights)
        return EAGER["grouped_mlp"](x, up, down, expert_ids, weights) if y is None else y
    tokens, chosen = expert_ids.shape
    n_experts, hidden, width = up.shape
    fits = tokens and chosen and hidden and up.dtype == down.dtype and weights.dtype == torch.float32
    fits = fits and x.shape == (tokens, width) and x.numel() and down.shape == (n_experts, width, hidden)
    fits = fits and weights.shape == expert_ids.shape and expert_ids.dtype == torch.int64
    if not fits or not readable(x, up, down, weights) or torch.compiler.is_compiling():
        return EAGER["grouped_mlp"](x, up, down, expert_ids, weights)
    if tokens <= MOST_TOKENS and plain(x, up, down, weights):
        return _few(x, up, down, expert_ids.contiguous(), weights)
    if not (up.is_contiguous() and down.is_contiguous()):
        return EAGER["grouped_mlp"](x, up, down, expert_ids, weights)
    arguments = x.contiguous(), up, down, expert_ids.contiguous(), weights.contiguous()
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, up, down, weights)):
        return _Experts.apply(*arguments)
    return _forward(*arguments, None)


def _few(x: Tensor, up: Tensor, down: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
    y, (n_experts, hidden, width) = torch.empty_like(x), up.shape
    done = run(
        "grouped_mlp", x.data_ptr(), TYPES[x.dtype], up.data_ptr(), down.data_ptr(), TYPES[up.dtype],
        expert_ids.data_ptr(), weights.data_ptr(), *expert_ids.shape, n_experts, hidden, width, y.data_ptr(),
        exact=x.dtype == torch.float32,
    )  # fmt: skip
    return y if done else EAGER["grouped_mlp"](x, up, down, expert_ids, weights)


class _Part(NamedTuple):
    """Rows of one expert among the sorted choices."""

    expert: int
    start: int
    end: int
    first: bool
    """Whether the expert has no earlier rows."""


class _Routes:
    """Choices sorted by expert; row r is choice order[r] of the flat (S*K,) choices."""

    def __init__(self, expert_ids: Tensor, n_experts: int, product: torch.dtype) -> None:
        tokens, self.chosen = expert_ids.shape
        self.order = empty(tokens * self.chosen, dtype=torch.int64)
        self.fresh = empty(tokens * self.chosen, dtype=torch.uint8)  # rows that are the first of their token
        ends = empty(n_experts + 1, dtype=torch.int64)
        done = run(
            "group_choices", expert_ids.data_ptr(), tokens, self.chosen, n_experts, self.order.data_ptr(),
            ends.data_ptr(), self.fresh.data_ptr(),
        )  # fmt: skip
        if not done:
            raise MemoryError(f"grouped_mlp: no memory to sort {tokens * self.chosen} choices")
        bounds = ends.tolist()
        self.parts = [
            _Part(e, a, b, a == bounds[e])
            for e in range(n_experts)
            for a, b in pieces(bounds[e], bounds[e + 1], product)
        ]
        self.most = max(part.end - part.start for part in self.parts)
        self.empty = [e for e in range(n_experts) if bounds[e] == bounds[e + 1]]

    def address(self, part: _Part) -> int:
        """Where the choices of these rows begin."""
        return self.order.data_ptr() + 8 * part.start

    def gather(self, x: Tensor, part: _Part, rows: Tensor) -> None:
        """rows (n, D) = x of each row's token."""
        run(
            "gather_rows", x.data_ptr(), TYPES[x.dtype], self.address(part), self.chosen, *rows.shape, rows.data_ptr(),
            TYPES[rows.dtype],
        )  # fmt: skip

    def scatter(self, rows: Tensor, part: _Part, total: Tensor) -> None:
        """total (S, D) += rows, each onto its token; parts come in order, so the first row of a token is written."""
        run(
            "scatter_rows", rows.data_ptr(), TYPES[rows.dtype], self.address(part), self.chosen,
            self.fresh.data_ptr() + part.start, *rows.shape, total.data_ptr(),
        )  # fmt: skip


def _forward(x: Tensor, up: Tensor, down: Tensor, expert_ids: Tensor, weights: Tensor, kept: Tensor | None) -> Tensor:
    """`kept` (S*K, F) in x.dtype gets the hidden values before the activation."""
    product, (E, F, D) = matmul_dtype(x.dtype, x.device), up.shape
    routes = _Routes(expert_ids, E, product)
    total = empty(x.shape, dtype=torch.float32)
    rows_of, active_of = (empty(routes.most, width, dtype=product) for width in (D, F))
    up_cast, down_cast = cast_buffer(up[0], product), cast_buffer(down[0], product)
    for part in routes.parts:
        n, copy = part.end - part.start, None if kept is None else kept[part.start : part.end]
        rows, active = rows_of[:n], active_of[:n]
        hidden = copy if copy is not None and copy.dtype == product else active
        routes.gather(x, part, rows)
        torch.mm(rows, cast(up[part.expert], up_cast).t(), out=hidden)
        activate(hidden, active, None if hidden is copy else copy, weights, routes.address(part))
        torch.mm(active, cast(down[part.expert], down_cast).t(), out=rows)
        routes.scatter(rows, part, total)
    return total.to(x.dtype)


class _Experts(torch.autograd.Function):
    """Keeps the inputs and the hidden values before the activation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, down: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
        hidden = empty(expert_ids.numel(), up.shape[1], dtype=x.dtype)
        y = _forward(x, up, down, expert_ids, weights, hidden)
        ctx.save_for_backward(x, up, down, expert_ids, weights, hidden)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor):
        x, up, down, expert_ids, weights, hidden = ctx.saved_tensors
        product, (E, F, D), dout = matmul_dtype(x.dtype, x.device), up.shape, dout.contiguous()
        routes = _Routes(expert_ids, E, product)
        need_x, need_up, need_down = ctx.needs_input_grad[:3]
        dx = empty(x.shape, dtype=torch.float32) if need_x else None
        dup = _gradient(up, product, routes) if need_up else None
        ddown = _gradient(down, product, routes) if need_down else None
        dweights = torch.empty_like(weights)
        rows_of, drows_of, active_of, dactive_of = (empty(routes.most, width, dtype=product) for width in (D, D, F, F))
        up_cast, down_cast = cast_buffer(up[0], product), cast_buffer(down[0], product)
        for part in routes.parts:
            e, n, beta = part.expert, part.end - part.start, int(not part.first)
            rows, drows, active, dactive = rows_of[:n], drows_of[:n], active_of[:n], dactive_of[:n]
            routes.gather(dout, part, drows)
            torch.mm(drows, cast(down[e], down_cast), out=dactive)
            kept = hidden[part.start : part.end]
            activate_backward(kept, dactive, active, weights, routes.address(part), dweights)
            if ddown is not None:
                ddown[e].addmm_(drows.t(), active, beta=beta)
            if dup is not None:
                routes.gather(x, part, rows)
                dup[e].addmm_(dactive.t(), rows, beta=beta)
            if dx is not None:
                torch.mm(dactive, cast(up[e], up_cast), out=drows)
                routes.scatter(drows, part, dx)
        dx = dx.to(x.dtype) if dx is not None else None
        dup = dup.to(up.dtype) if dup is not None else None
        ddown = ddown.to(down.dtype) if ddown is not None else None
        return dx, dup, ddown, None, dweights


def _gradient(weight: Tensor, dtype: torch.dtype, routes: _Routes) -> Tensor:
    """Room for a weight's gradient, zero only where no product will write."""
    grad = empty(weight.shape, dtype=dtype)
    for expert in routes.empty:
        grad[expert].zero_()
    return grad


def _experts(g: torch.Generator, dtype: torch.dtype) -> tuple:
    ids = integers([[0, 2], [2, 1], [2, 0], [4, 2]])
    weights = normal(g, torch.float32, 4, 2).abs()
    return normal(g, dtype, 4, 19), normal(g, dtype, 5, 33, 19), normal(g, dtype, 5, 19, 33), ids, weights


KERNELS = {
    "grouped_mlp": Kernel(
        grouped_mlp, "all around the products, and the products of up to 64 tokens", _experts, differentiable=True
    )
}
