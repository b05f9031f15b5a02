"""Matrices of integers as folders hold them: compressed-tensors' `int-quantized` and `pack-quantized`.

8 bits: `weight` int8 (O, I) and `weight_scale` float32 (O, 1). 4 bits: `weight_packed` int32 (O, I / 8), the first of
eight neighbours in the lowest bits, each 8 more than its number, `weight_scale` (O, I / 32) and `weight_shape` (2,).
The bytes of `weight_packed` are those that nano3 computes with.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nano3.kernels import Scaled
from nano3.kernels.integers import GROUP
from nano3.kernels.scaled import INT4, INT8

PACKED, SHAPE = "weight_packed", "weight_shape"


def stored_tensors(name: str, value: Tensor) -> dict[str, Tensor]:
    """What a folder holds of one of a model's tensors, or of one expert's part: that, or the forms above."""
    if value.dtype == INT4:
        outputs, width = value.shape
        shape = torch.tensor([outputs, 2 * width], dtype=torch.int64)
        stem = name.removesuffix("weight")
        return {f"{stem}{PACKED}": value.contiguous().view(torch.int32), f"{stem}{SHAPE}": shape}
    return {name: value.unsqueeze(1)} if name.endswith(".weight_scale") and value.dim() == 1 else {name: value}


def stored_names(name: str, dtype: torch.dtype) -> list[str]:
    """Names of `stored_tensors`, for a tensor of this type."""
    stem = name.removesuffix("weight")
    return [f"{stem}{PACKED}", f"{stem}{SHAPE}"] if dtype == INT4 else [name]


def empty(weight: Tensor, dtype: torch.dtype) -> Scaled:
    """A matrix of integers in the place of this one (..., O, I), on its device, without numbers.

    Raises:
        ValueError: 4 bits, and rows are no multiple of 32.
    """
    *outputs, width = weight.shape
    make: Callable[..., Tensor] = weight.new_empty
    if dtype == INT8:
        return Scaled(make(*outputs, width, dtype=INT8), make(*outputs, dtype=torch.float32))
    if width % GROUP:
        raise ValueError(f"rows of {width} numbers do not divide into groups of {GROUP}")
    return Scaled(make(*outputs, width // 2, dtype=INT4), make(*outputs, width // GROUP, dtype=torch.float16))
