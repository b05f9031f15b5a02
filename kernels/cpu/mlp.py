"""The squared-ReLU MLP of many rows, and its gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..common import matmul_dtype
from .call import empty
from .products import activate, activate_backward, pieces


def squared_relu_rows(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """x (..., D), up (F, D), down (D, F), all contiguous float32 or bfloat16 -> (..., D)."""
    if torch.is_grad_enabled() and (x.requires_grad or up.requires_grad or down.requires_grad):
        return _Rows.apply(x, up, down)
    return _forward(x, up, down, None)


def _forward(x: Tensor, up: Tensor, down: Tensor, kept: Tensor | None) -> Tensor:
    """`kept` (rows, F) in x.dtype gets the hidden values before the activation."""
    product, (F, D) = matmul_dtype(x.dtype, x.device), up.shape
    up, down, rows, y = up.to(product), down.to(product), x.view(-1, D), torch.empty_like(x)
    parts = pieces(0, len(rows), product)
    buffer = empty(parts[0][1], F, dtype=product)
    for a, b in parts:
        copy, active = None if kept is None else kept[a:b], buffer[: b - a]
        hidden = copy if copy is not None and copy.dtype == product else active
        torch.mm(rows[a:b].to(product), up.t(), out=hidden)
        activate(hidden, active, None if hidden is copy else copy)
        _into(y.view(-1, D)[a:b], active, down.t())
    return y


class _Rows(torch.autograd.Function):
    """Keeps the input and the hidden values before the activation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
        hidden = empty(x.numel() // up.shape[1], up.shape[0], dtype=x.dtype)
        y = _forward(x, up, down, hidden)
        ctx.save_for_backward(x, up, down, hidden)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor):
        x, up, down, hidden = ctx.saved_tensors
        product, (F, D) = matmul_dtype(x.dtype, x.device), up.shape
        wide_up, wide_down = up.to(product), down.to(product)
        rows, drows = x.view(-1, D), dout.contiguous().view(-1, D)
        need_x, need_up, need_down = ctx.needs_input_grad
        dx = torch.empty_like(x) if need_x else None
        dup = empty(F, D, dtype=product) if need_up else None
        ddown = empty(D, F, dtype=product) if need_down else None
        parts = pieces(0, len(rows), product)
        buffers = [empty(parts[0][1], F, dtype=product) for _ in range(2)]
        for a, b in parts:
            part, (dactive, active) = drows[a:b].to(product), (buffer[: b - a] for buffer in buffers)
            torch.mm(part, wide_down, out=dactive)
            activate_backward(hidden[a:b], dactive, active)
            if ddown is not None:
                ddown.addmm_(part.t(), active, beta=int(a > 0))
            if dup is not None:
                dup.addmm_(dactive.t(), rows[a:b].to(product), beta=int(a > 0))
            if dx is not None:
                _into(dx.view(-1, D)[a:b], dactive, wide_up)
        return dx, None if dup is None else dup.to(up.dtype), None if ddown is None else ddown.to(down.dtype)


def _into(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out = a @ b, in another type than theirs where it has one."""
    if out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    else:
        out.copy_(torch.mm(a, b))
