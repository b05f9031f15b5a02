"""Products of e4m3 numbers by the units of GPUs that have them: Ada, Hopper and later (compute capability 8.9)."""

from __future__ import annotations

from functools import cache
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common import located
from ..scaled import E4M3, E4M3_MAX, Scaled, Weight

OLDEST = (8, 9)
"""Lowest compute capability."""
MULTIPLE = 16
"""Rows and columns of a matrix must be multiples of it; those of the 30B model are."""
TYPES = frozenset({torch.bfloat16, torch.float16})
"""Of activations. In float32 they would lose digits: the units add with fewer than float32 has."""
MOST_ERROR = 2e-2
"""Of the trial product, relative to its largest number."""


def rounded(x: Tensor, scale: Tensor) -> Tensor:
    """x / scale in float32, cut off at +-448, as e4m3 numbers, those of `quantize_e4m3`; dense, row after row."""
    quotient = (x.float() / scale.float()).clamp_(-E4M3_MAX, E4M3_MAX)
    return quotient.to(E4M3, memory_format=torch.contiguous_format)


def product(x: Tensor, weight: Scaled) -> Tensor:
    """x (..., I) times the matrix (O, I), one scale each: (..., O) in x.dtype, from fp32 sums. Nothing waits."""
    assert weight.input_scale is not None
    rows = rounded(x.reshape(-1, x.shape[-1]), weight.input_scale)
    scales = {"scale_a": weight.input_scale.float(), "scale_b": weight.scale.float()}
    out = torch._scaled_mm(rows, weight.data.t(), **scales, out_dtype=x.dtype, use_fast_accum=False)  # pyright: ignore[reportPrivateImportUsage]
    return out.view(*x.shape[:-1], -1)


def takes(x: Tensor, weight: Scaled) -> bool:
    """Whether `product` is for this call: static scales for both sides, no gradient, sizes and device that it has."""
    return (
        is_static(weight)
        and x.dtype in TYPES
        and x.numel() > 0
        and not (torch.is_grad_enabled() and x.requires_grad)
        and not any(size % MULTIPLE for size in weight.shape)
        and weight.data.is_contiguous()
        and x.device == weight.data.device
        and has_units(x.device)
    )


def is_static(weight: Weight) -> TypeGuard[Scaled]:
    """Whether it is of e4m3 numbers, and what it multiplies is rounded to such with one scale for all."""
    if not isinstance(weight, Scaled) or weight.dtype != E4M3 or weight.input_scale is None:
        return False
    return weight.input_scale.dim() == 0


def has_units(device: torch.device) -> bool:
    """Whether a GPU multiplies e4m3 numbers, and rightly: a small product is tried once a process and device."""
    try:
        return device.type == "cuda" and _tried(located(device))
    except torch.OutOfMemoryError:  # not kept: memory may be free the next time
        return False


@cache
def _tried(device: torch.device) -> bool:
    if torch.version.hip or torch.cuda.get_device_capability(device) < OLDEST:
        return False
    scale, own = (torch.tensor(number, device=device) for number in (0.02, 0.3))
    x = torch.linspace(-3, 3, 5 * 64, device=device).view(5, 64).bfloat16()
    weight = Scaled(torch.linspace(2, -7, 48 * 64, device=device).view(48, 64).to(E4M3), own, scale)
    try:
        got = product(x, weight).float()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError):  # a build without them
        return False
    expected = F.linear(rounded(x, scale).float() * scale, weight.dequantized())
    return bool((got - expected).abs().max() <= MOST_ERROR * expected.abs().max())
