"""A weight as data and scale: what ops multiply by when its numbers are stored in fewer bits than a float has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .integers import GROUP, int4_groups, int8_rows, unpack

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
"""Largest number of e4m3 (arXiv 2209.05433); beyond it PyTorch's conversion gives nan."""
SMALLEST_EXPONENT, MANTISSA = -6, 3
"""Of e4m3's normal numbers, and bits of mantissa."""
FLOATS = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})
"""Types whose numbers are weights as they stand."""
INT8, INT4 = torch.int8, torch.uint8
INTEGERS = frozenset({INT8, INT4})
FORMATS = frozenset({E4M3, *INTEGERS})
"""Types of the numbers of a scaled weight."""


@dataclass(frozen=True, eq=False)
class Scaled:
    """A matrix (O, I), or (E, O, I) of E experts, whose numbers are `data * scale`. Gradients pass through it and never
    reach it. The type of `data` is the format:

    - float8_e4m3fn: one scale a matrix.
    - int8: one float32 scale a row, (..., O). What it multiplies is rounded to 8-bit integers, one scale a token.
    - uint8: two 4-bit numbers a byte, (..., O, I / 2), and one float16 scale for 32 of a row, (..., O, I / 32); what it
      multiplies is rounded as for int8. See integers.py for the bits.

    Raises:
        ValueError: data of another type, or scales of another shape or type.
    """

    data: Tensor
    scale: Tensor
    input_scale: Tensor | None = None
    """Of float8_e4m3fn: fp32 (), or (E,): activations are first rounded to e4m3 numbers times this, static for all
    tokens. None: activations stay as they are."""

    def __post_init__(self) -> None:
        data, scale = self.data, self.scale
        if data.dtype not in FORMATS or data.dim() not in (2, 3):
            name, shape = _name(data.dtype), tuple(data.shape)
            raise ValueError(f"a scaled weight has data (O, I) or (E, O, I) of float8_e4m3fn, int8 or uint8 (two 4-bit "
                             f"numbers each), not {shape} of {name}")  # fmt: skip
        if data.dtype in INTEGERS:
            shape, dtype = data.shape[:-1], torch.float32
            if data.dtype == INT4:
                shape, dtype = (*shape, data.shape[-1] * 2 // GROUP), torch.float16
            if scale.shape != shape or scale.dtype != dtype or (data.dtype == INT4 and self.shape[-1] % GROUP):
                raise ValueError(f"a scaled weight of {tuple(data.shape)} {_name(data.dtype)} has scale "
                                 f"{tuple(scale.shape)} of {_name(scale.dtype)}; it must be {tuple(shape)} of "
                                 f"{_name(dtype)}")  # fmt: skip
            if self.input_scale is not None:
                raise ValueError(f"a scaled weight of {_name(data.dtype)} takes no input_scale: each token has its own")
            return
        for what, value in (("scale", scale), ("input_scale", self.input_scale)):
            if value is not None and (value.shape not in ((), data.shape[:-2]) or value.dtype not in FLOATS):
                found = f"{what} {tuple(value.shape)} of {_name(value.dtype)}"
                raise ValueError(f"a scaled weight of {tuple(data.shape)} has {found}; it must be one number, or "
                                 "one an expert")  # fmt: skip

    @property
    def shape(self) -> torch.Size:
        """Of the matrix that it stands for."""
        shape = self.data.shape
        return torch.Size((*shape[:-1], 2 * shape[-1])) if self.dtype == INT4 else shape

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
        if self.dtype == INT4:
            groups = unpack(self.data).to(wide).unflatten(-1, (-1, GROUP))
            return (groups * scale.unsqueeze(-1)).flatten(-2).to(dtype)
        if self.dtype == INT8:
            return (self.data.to(wide) * scale.unsqueeze(-1)).to(dtype)
        return (self.data.to(wide) * (scale[:, None, None] if scale.dim() else scale)).to(dtype)


def quantize_int8(matrix: Tensor) -> Scaled:
    """A float matrix (O, I) or (E, O, I) in 8-bit integers: integers.int8_rows says how."""
    return Scaled(*int8_rows(matrix))


def quantize_int4(matrix: Tensor) -> Scaled:
    """A float matrix (O, I) or (E, O, I) in 4-bit integers: integers.int4_groups says how.

    Raises:
        ValueError: rows are no multiple of 32.
    """
    return Scaled(*int4_groups(matrix))


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
