"""A weight as data and scale: what ops multiply by when its numbers are stored in fewer bits than a float has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
"""Largest number of e4m3 (arXiv 2209.05433); beyond it PyTorch's conversion gives nan."""
SMALLEST_EXPONENT, MANTISSA = -6, 3
"""Of e4m3's normal numbers, and bits of mantissa."""
FLOATS = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})
"""Types whose numbers are weights as they stand."""


@dataclass(frozen=True, eq=False)
class Scaled:
    """A matrix, or one an expert, whose numbers are `data * scale`. Gradients pass through it and never reach it.

    `data.dtype` says the format, the shape of `scale` how many numbers share one. A format with one scale a row has
    `scale` (..., O), one in groups (..., O, I / group), and one of 4 bits has `data` (..., O, I / 2) uint8; so it needs
    a line in `__post_init__` and no other contract. Today there is float8_e4m3fn with one scale a matrix.

    Raises:
        ValueError: data of another type, or scales of another shape.
    """

    data: Tensor
    """(O, I), or (E, O, I) of E experts."""
    scale: Tensor
    """fp32 (), or (E,)."""
    input_scale: Tensor | None = None
    """fp32 (), or (E,): activations are first rounded to e4m3 numbers times this, static for all tokens. None:
    activations stay as they are."""

    def __post_init__(self) -> None:
        if self.data.dtype != E4M3 or self.data.dim() not in (2, 3):
            name, shape = _name(self.data.dtype), tuple(self.data.shape)
            raise ValueError(f"a scaled weight has data (O, I) or (E, O, I) of float8_e4m3fn, not {shape} of {name}")
        for what, scale in (("scale", self.scale), ("input_scale", self.input_scale)):
            if scale is not None and (scale.shape not in ((), self.data.shape[:-2]) or scale.dtype not in FLOATS):
                found = f"{what} {tuple(scale.shape)} of {_name(scale.dtype)}"
                raise ValueError(f"a scaled weight of {tuple(self.data.shape)} has {found}; it must be one number, or "
                                 "one an expert")  # fmt: skip

    @property
    def shape(self) -> torch.Size:
        """Of the matrix that it stands for."""
        return self.data.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored numbers."""
        return self.data.dtype

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.data.device

    def __getitem__(self, expert: int) -> Scaled:
        """The matrix of one expert."""
        scale, given = (s[expert] if s is not None and s.dim() else s for s in (self.scale, self.input_scale))
        assert scale is not None
        return Scaled(self.data[expert], scale, given)

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """data * scale, of its shape; float32 numbers before they are rounded to `dtype`."""
        wide = torch.promote_types(dtype, torch.float32)
        scale = self.scale.to(wide)
        return (self.data.to(wide) * (scale[:, None, None] if scale.dim() else scale)).to(dtype)


Weight: TypeAlias = "Tensor | Scaled"


def check_weight(op: str, weight: Weight, dim: int) -> None:
    """Of a weight that is no plain float tensor.

    Raises:
        ValueError: stored numbers without their scale, or a scaled weight of another number of dimensions.
    """
    if not isinstance(weight, Scaled):
        raise ValueError(f"{op}: a weight of {_name(weight.dtype)} is numbers without their scale; give "
                         "nano3.kernels.Scaled(data, scale), or a float tensor")  # fmt: skip
    if weight.data.dim() != dim:
        raise ValueError(f"{op}: a scaled weight of shape {tuple(weight.shape)}; it needs {dim} dimensions")


def check_float(op: str, weight: Weight) -> None:
    """Of an op that takes plain tensors only.

    Raises:
        ValueError: the weight is scaled, or stored numbers without their scale.
    """
    if isinstance(weight, Scaled):
        raise ValueError(f"{op}: takes no scaled weight; give weight.dequantized()")
    if weight.dtype not in FLOATS:
        raise ValueError(f"{op}: a weight of {_name(weight.dtype)} is numbers without their scale; give a float tensor")


def quantize_e4m3(x: Tensor, scale: Tensor) -> Tensor:
    """x / scale as e4m3 numbers, held in x.dtype: cut off at +-448, rounded to nearest, ties to even.

    The gradient passes straight through the rounding; it is zero where x was cut off.

    Args:
        x: any shape, float32 or float64.
        scale: ().
    """
    return _Round.apply((x / scale.to(x.dtype)).clamp(-E4M3_MAX, E4M3_MAX))


class _Round(torch.autograd.Function):
    """To the nearest e4m3 number; the gradient is that of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        if x.dtype != torch.float64:
            return x.to(E4M3).to(x.dtype)
        # PyTorch's conversion of float64 goes through float32, which rounds twice.
        step = torch.ldexp(torch.ones_like(x), (x.frexp().exponent - 1).clamp_min(SMALLEST_EXPONENT) - MANTISSA)
        return (x / step).round() * step

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> Tensor:
        return dout


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
