"""Matrices to e4m3 numbers with one scale, bit for bit as NVIDIA ModelOpt 0.47 exports them (report section 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from nano3.kernels import Scaled
from nano3.kernels.scaled import E4M3, E4M3_MAX


def scale_of(amax: Tensor | float) -> Tensor:
    """(): the largest magnitude as a multiple of e4m3's largest number, fp32. Where all numbers are 0 it is 1."""
    largest = torch.as_tensor(amax, dtype=torch.float32)
    return torch.where(largest > 0, largest / E4M3_MAX, torch.ones_like(largest))


def to_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix (O, I) as e4m3 numbers (O, I) and their fp32 scale ().

    The quotient is rounded to bf16 before it is rounded to e4m3: a PyTorch scalar does not widen what it divides, so
    this is what ModelOpt writes. It differs in 3 % of the numbers, by one step, from the quotient in float32.

    Raises:
        ValueError: a number that is not finite.
    """
    weight = weight.to(torch.bfloat16)
    amax = weight.abs().amax()
    if not amax.isfinite():
        raise ValueError("holds a number that is not finite")
    scale = scale_of(amax.float())
    return (weight / scale).clamp_(-E4M3_MAX, E4M3_MAX).to(E4M3), scale


def error_of(weight: Tensor, data: Tensor, scale: Tensor) -> float:
    """Root of the mean squared error of data * scale, as a share of the weight's own root mean square."""
    weight = weight.float()
    size = weight.square().mean().sqrt()
    return float((Scaled(data, scale).dequantized() - weight).square().mean().sqrt() / size) if size > 0 else 0.0
