"""Linear maps and squared-ReLU MLPs, dense and routed; products run in the fastest input type of the device."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..common import accumulator, matmul_dtype
from ..integers import EXACT_WIDTH, Through, round_rows
from ..narrow import is_kept, narrowed
from ..scaled import INT8, INTEGERS, Scaled, Weight, quantize_e4m3
from . import fp8


def linear(x: Tensor, weight: Weight) -> Tensor:
    """See nano3.kernels.linear."""
    if isinstance(weight, Scaled):
        if weight.dtype in INTEGERS:
            return Through.apply(x, _integer_product(x, weight), weight)
        return _scaled_linear(x, weight)
    if matmul_dtype(x.dtype, x.device) == x.dtype and not is_kept(weight):
        return F.linear(x, weight.to(x.dtype))
    return _Linear.apply(x, weight)


def squared_relu_mlp(x: Tensor, up: Weight, down: Weight) -> Tensor:
    """See nano3.kernels.squared_relu_mlp."""
    if isinstance(up, Scaled) or isinstance(down, Scaled):
        return linear(F.relu(linear(x, up)).square(), down)
    return _SquaredReluMLP.apply(x, up, down)


def _scaled_linear(x: Tensor, weight: Scaled) -> Tensor:
    """A product of stored numbers, in which no rounding but that of the sum takes place; then the scales. Where a GPU
    multiplies e4m3 numbers by themselves, so; else as float32 numbers."""
    if fp8.takes(x, weight):
        return fp8.product(x, weight)
    wide = accumulator(x.dtype)
    rows, factor = x.to(wide), weight.scale.to(wide)
    if weight.input_scale is not None:
        rows, factor = quantize_e4m3(rows, weight.input_scale), factor * weight.input_scale
    return _ScaledProduct.apply(rows, weight.data, factor).to(x.dtype)


def _integer_product(x: Tensor, weight: Scaled) -> Tensor:
    """The sums of 8-bit products are exact: of parts in float32, of the parts in float64."""
    wide = accumulator(x.dtype)
    rows, scale = round_rows(x.to(wide))
    if weight.dtype != INT8:
        return (F.linear(rows, weight.dequantized(wide)) * scale).to(x.dtype)
    parts = zip(rows.split(EXACT_WIDTH, -1), weight.data.split(EXACT_WIDTH, -1), strict=True)
    sums = [F.linear(a, b.to(wide)) for a, b in parts]
    total = sums[0] if len(sums) == 1 else torch.stack(sums).sum(0, dtype=torch.float64).to(wide)
    return (total * (scale * weight.scale.to(wide))).to(x.dtype)


class _ScaledProduct(torch.autograd.Function):
    """Keeps the stored numbers, a quarter of what they take in float32."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, data: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(data, factor)
        return F.linear(rows, data.to(rows.dtype)).mul_(factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor):
        data, factor = ctx.saved_tensors
        return (dout * factor) @ data.to(dout.dtype), None, None


class _Linear(torch.autograd.Function):
    """A product in another type than the activations', which keeps only the narrow activations, and those only for a
    weight that trains."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        product = matmul_dtype(x.dtype, x.device)
        return F.linear(x.to(product), narrowed(weight, product)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor):
        x, weight = ctx.saved_tensors
        dtype, product = dout.dtype, matmul_dtype(dout.dtype, dout.device)
        dout = dout.to(product)
        dx = dweight = None
        if ctx.needs_input_grad[0]:
            dx = (dout @ narrowed(weight, product)).to(dtype)
        if ctx.needs_input_grad[1]:
            dweight = (dout.flatten(0, -2).t() @ x.to(product).flatten(0, -2)).to(weight.dtype)
        return dx, dweight


class _SquaredReluMLP(torch.autograd.Function):
    """Keeps the input and the hidden values before the activation; the activation is computed anew."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
        product = matmul_dtype(x.dtype, x.device)
        hidden = F.linear(x.to(product), narrowed(up, product))
        ctx.save_for_backward(x, up, down, hidden.to(x.dtype))
        return F.linear(F.relu(hidden).square_(), narrowed(down, product)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor):
        x, up, down, hidden = ctx.saved_tensors
        product = matmul_dtype(x.dtype, x.device)
        rows, dout = x.to(product).flatten(0, -2), dout.to(product).flatten(0, -2)
        positive = F.relu(hidden.to(product).flatten(0, -2))
        ddown = (dout.t() @ positive.square()).to(down.dtype)
        dhidden = (dout @ narrowed(down, product)).mul_(positive).mul_(2)
        dx = (dhidden @ narrowed(up, product)).to(x.dtype).view(x.shape)
        return dx, (dhidden.t() @ rows).to(up.dtype), ddown
