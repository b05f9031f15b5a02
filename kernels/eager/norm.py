"""RMS norms in cache-sized row blocks; the backward keeps inputs and inverse deviations only."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..common import accumulator, row_blocks


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See nano3.kernels.rms_norm."""
    return _RMSNorm.apply(x, weight, eps)


def gated_rms_norm(y: Tensor, z: Tensor, weight: Tensor, eps: float, n_groups: int) -> Tensor:
    """See nano3.kernels.gated_rms_norm."""
    return _GatedRMSNorm.apply(y, z, weight, eps, n_groups)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows, wide = _rows(x), accumulator(x.dtype)
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        rstd = torch.empty(rows.shape[0], 1, dtype=wide, device=x.device)
        w = weight.to(wide)
        for part in _blocks(rows):
            _normalise(rows[part].to(wide), w, eps, rstd[part], _rows(out)[part])
        ctx.save_for_backward(x, weight, rstd)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor):
        x, weight, rstd = ctx.saved_tensors
        rows, grads, wide = _rows(x), _rows(dout), rstd.dtype
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        w, dweight = weight.to(wide), torch.zeros(weight.shape, dtype=wide, device=x.device)
        for part in _blocks(rows):
            dblock = _input_grad(rows[part].to(wide), grads[part].to(wide), w, rstd[part], dweight)
            _rows(dx)[part] = dblock
        return dx, dweight.to(weight.dtype), None


class _GatedRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, z: Tensor, weight: Tensor, eps: float, n_groups: int) -> Tensor:
        y_rows, z_rows, wide = _rows(y), _rows(z), accumulator(y.dtype)
        out = torch.empty(y.shape, dtype=y.dtype, device=y.device)
        rstd = torch.empty(y_rows.shape[0], n_groups, dtype=wide, device=y.device)
        w = weight.to(wide)
        for part in _blocks(y_rows):
            gated = F.silu(z_rows[part].to(wide)).mul_(y_rows[part])
            _normalise(gated, w, eps, rstd[part], _rows(out)[part])
        ctx.save_for_backward(y, z, weight, rstd)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor):
        y, z, weight, rstd = ctx.saved_tensors
        y_rows, z_rows, grads, wide = _rows(y), _rows(z), _rows(dout), rstd.dtype
        dy, dz = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (y, z))
        w, dweight = weight.to(wide), torch.zeros(weight.shape, dtype=wide, device=y.device)
        for part in _blocks(y_rows):
            gate_input, values = z_rows[part].to(wide), y_rows[part].to(wide)
            gate = F.silu(gate_input)
            dgated = _input_grad(gate * values, grads[part].to(wide), w, rstd[part], dweight)
            _rows(dz)[part] = torch.ops.aten.silu_backward(dgated * values, gate_input)
            _rows(dy)[part] = dgated.mul_(gate)
        return dy, dz, dweight.to(weight.dtype), None, None


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _blocks(rows: Tensor):
    return row_blocks(rows.shape[0], rows.shape[1] * 4, rows.device)


def _normalise(block: Tensor, weight: Tensor, eps: float, rstd: Tensor, out: Tensor) -> None:
    """out = block normalised in as many groups as rstd has columns, times weight; fills rstd."""
    grouped = block.unflatten(-1, (rstd.shape[1], -1))
    squares = torch.linalg.vector_norm(grouped, dim=-1).square_()
    rstd.copy_(squares.div_(grouped.shape[-1]).add_(eps).rsqrt_())
    normed = grouped * rstd.unsqueeze(-1)
    out.copy_(normed.flatten(-2).mul_(weight))


def _input_grad(block: Tensor, dout: Tensor, weight: Tensor, rstd: Tensor, dweight: Tensor) -> Tensor:
    """Gradient of a normalised block's input; adds the block's part to dweight."""
    groups = (rstd.shape[1], -1)
    normed = block.unflatten(-1, groups) * rstd.unsqueeze(-1)
    dweight += (normed.flatten(-2) * dout).sum(0)
    dnormed = (dout * weight).unflatten(-1, groups)
    mean = (dnormed * normed).mean(-1, keepdim=True)
    return dnormed.sub_(normed.mul_(mean)).mul_(rstd.unsqueeze(-1)).flatten(-2)
