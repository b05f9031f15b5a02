"""Linear maps, the squared-ReLU MLP (arXiv 2109.08668) and its routed mixture of experts."""

from __future__ import annotations

import torch
from torch import Tensor

from ..common import accumulator
from ..integers import Through, round_rows
from ..scaled import INT8, INTEGERS, Scaled, Weight, quantize_e4m3


def linear(x: Tensor, weight: Weight) -> Tensor:
    """See nano3.kernels.linear."""
    wide = accumulator(x.dtype)
    if isinstance(weight, Scaled):
        if weight.dtype in INTEGERS:
            return Through.apply(x, _integer_product(x.to(wide), weight).to(x.dtype), weight)
        rows = x.to(wide)
        if (scale := weight.input_scale) is not None:
            rows = quantize_e4m3(rows, scale) * scale
        return (rows @ weight.dequantized(wide).T).to(x.dtype)
    return (x.to(wide) @ weight.to(x.dtype).to(wide).T).to(x.dtype)


def _integer_product(x: Tensor, weight: Scaled) -> Tensor:
    """In x.dtype, from sums without any rounding: float64 holds them all (of 4-bit numbers, all that matter)."""
    rows, scale = round_rows(x)
    if weight.dtype == INT8:
        return (rows.double() @ weight.data.double().T).to(x.dtype) * (scale * weight.scale.to(x.dtype))
    return (rows.double() @ weight.dequantized(torch.float64).T).to(x.dtype) * scale


def squared_relu_mlp(x: Tensor, up: Weight, down: Weight) -> Tensor:
    """See nano3.kernels.squared_relu_mlp."""
    return linear(torch.relu(linear(x, up)).square(), down)


def grouped_mlp(x: Tensor, up: Weight, down: Weight, expert_ids: Tensor, weights: Tensor) -> Tensor:
    """See nano3.kernels.grouped_mlp."""
    wide = accumulator(x.dtype)
    total = torch.zeros(x.shape, dtype=wide, device=x.device)
    for expert in range(up.shape[0]):
        gate = (weights.to(wide) * (expert_ids == expert)).sum(-1, keepdim=True)  # (S, 1), 0 where not chosen
        total = total + gate * squared_relu_mlp(x, up[expert], down[expert]).to(wide)
    return total.to(x.dtype)
