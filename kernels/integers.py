"""Matrices of 8-bit and 4-bit integers, and the 8-bit activations that they multiply: what is rounded, and how.

int8: one float32 scale a row. int4: one float16 scale for each 32 neighbours of a row, the codes and scales of GGUF's
Q4_0 in the order of compressed-tensors' pack-quantized, so that either is got without rounding and the latter as it
lies. Activations: one scale a token, found anew each time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MOST = 127
"""Largest magnitude of 8-bit numbers; -128 is not used, so that the two signs are alike."""
GROUP = 32
"""Neighbours in a row of a 4-bit matrix that share a scale."""
ZERO = 8
"""Code of the 4-bit number 0: codes 0 to 15 stand for -8 to 7."""
LEAST = 1e-30
"""A token whose largest magnitude is below this counts as zeros: the inverse of its scale would overflow."""
EXACT_WIDTH = 1024
"""Products of 8-bit numbers of which float32 holds every partial sum: 1024 * 127^2 < 2^24."""


def round_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each row as 8-bit integers times a scale: scale = amax / 127, integers = round(x * (127 / amax)), ties to even.

    Args:
        x: (..., I) float32 or float64.

    Returns:
        integers (..., I) in x.dtype, and scales (..., 1). Of a row with a nan or an infinity the scale is nan, of one
        below `LEAST` all is 0.
    """
    amax = x.detach().abs().amax(-1, keepdim=True) if x.shape[-1] else x.new_zeros(*x.shape[:-1], 1)
    small, odd = amax < LEAST, ~amax.isfinite()
    # Not MOST / amax, which PyTorch makes MOST * (1 / amax).
    factor = (torch.full_like(amax, MOST) / amax).masked_fill(small | odd, 0)
    numbers = (x.detach() * factor).masked_fill(odd, 0).round().clamp(-MOST, MOST)
    return numbers, (amax / MOST).masked_fill(small, 0).masked_fill(odd, torch.nan)


def int8_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A float matrix (..., O, I) as int8 (..., O, I) and float32 scales (..., O): amax / 127 of each row (1 of a row of
    zeros); the quotient is rounded to nearest, ties to even."""
    wide = matrix.detach().float()
    amax = wide.abs().amax(-1)
    scale = torch.where(amax > 0, amax / MOST, torch.ones_like(amax)).clamp_min(torch.finfo(torch.float32).tiny)
    return (wide / scale.unsqueeze(-1)).round().clamp(-MOST, MOST).to(torch.int8), scale


def int4_groups(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A float matrix (..., O, I) as codes (..., O, I / 2) uint8, the first of two neighbours in the low half of a byte,
    and float16 scales (..., O, I / 32).

    As llama.cpp makes Q4_0: a group's number of largest magnitude becomes -8, so its scale is that over -8, and code =
    trunc(x / scale + 8.5), at most 15, before the scale is rounded to float16.

    Raises:
        ValueError: rows are no multiple of 32.
    """
    if matrix.shape[-1] % GROUP:
        raise ValueError(f"rows of {matrix.shape[-1]} numbers do not divide into groups of {GROUP}")
    groups = matrix.detach().float().unflatten(-1, (-1, GROUP))
    scale = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)) / -ZERO
    inverse = torch.where(scale == 0, 0, 1 / scale)
    codes = (groups * inverse + (ZERO + 0.5)).trunc().clamp(0, 2 * ZERO - 1).to(torch.uint8).flatten(-2)
    most = torch.finfo(torch.float16).max
    return pack(codes), scale.squeeze(-1).clamp(-most, most).to(torch.float16)


def pack(codes: Tensor) -> Tensor:
    """Codes (..., I) from 0 to 15 -> (..., I / 2) uint8, the first of two neighbours in the low half."""
    pairs = codes.unflatten(-1, (-1, 2))
    return pairs[..., 0] | (pairs[..., 1] << 4)


def unpack(data: Tensor) -> Tensor:
    """(..., I / 2) uint8 -> the numbers -8 to 7, (..., I) int8."""
    return torch.stack([data & 15, data >> 4], -1).flatten(-2).to(torch.int8) - ZERO


class Through(torch.autograd.Function):
    """A product that was made from rounded activations; its gradient is that of the matrix alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, product: Tensor, weight: Any) -> Tensor:
        """product, for gradients of x; weight.dequantized() is (O, I)."""
        ctx.weight, ctx.dtype = weight, x.dtype
        return product

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor):
        """Straight through the rounding."""
        wide = torch.promote_types(dout.dtype, torch.float32)
        return (dout.to(wide) @ ctx.weight.dequantized(wide)).to(ctx.dtype), None, None
