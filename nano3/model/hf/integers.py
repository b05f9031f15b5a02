"""Matrices of integers as folders hold them: compressed-tensors' `int-quantized` and `pack-quantized`.

8 bits: `weight` int8 (O, I) and `weight_scale` float32 (O, 1). 4 bits: `weight_packed` int32 (O, I / 8), the first of
eight neighbours in the lowest bits, each 8 more than its number, `weight_scale` (O, I / 32) and `weight_shape` (2,).
The bytes of `weight_packed` are those that nano3 computes with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nano3.config.errors import UserError
from nano3.kernels import Scaled
from nano3.kernels.integers import GROUP
from nano3.kernels.scaled import INT4, INT8

METHOD = "compressed-tensors"
FORMATS = {"int-quantized": ("INT8", INT8), "pack-quantized": ("INT4", INT4)}
"""Format of a folder -> what nano3 calls it, and the type of the numbers."""
PACKED, SHAPE = "weight_packed", "weight_shape"
EIGHT_BITS = {"num_bits": 8, "type": "int", "symmetric": True, "group_size": None}
FOUR_BITS = {"num_bits": 4, "type": "int", "symmetric": True, "group_size": GROUP}


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


def section(dtype: torch.dtype, excluded: list[str], cache: dict[str, Any] | None, head: bool) -> dict[str, Any]:
    """`quantization_config` of a folder whose matrices have this type.

    Args:
        dtype: int8, or uint8 for 4 bits.
        excluded: published names of the modules that stay as they are.
        cache: what is said of keys and values.
        head: whether the output projection is quantized, which loaders do not count among linear layers.
    """
    weights = {**EIGHT_BITS, "strategy": "channel"} if dtype == INT8 else {**FOUR_BITS, "strategy": "group"}
    activations = {**EIGHT_BITS, "strategy": "token", "dynamic": True} if dtype == INT8 else None
    targets = ["Linear", "lm_head"] if head else ["Linear"]
    group = {"targets": targets, "weights": {**weights, "dynamic": False}, "input_activations": activations}
    name = next(name for name, (_, kind) in FORMATS.items() if kind == dtype)
    return {
        "quant_method": METHOD,
        "format": name,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": excluded,
        "kv_cache_scheme": cache,
    }


def algorithm(section: dict[str, Any], where: str) -> str:
    """INT8 or INT4, of a `quantization_config`.

    Raises:
        UserError: another format, or other bits, groups or activations than nano3 computes with.
    """
    if section.get("format") not in FORMATS:
        raise UserError(f"{where}: is {METHOD} {section.get('format')}; nano3 reads {', '.join(FORMATS)}: take such a "
                        "folder, or the unquantized one")  # fmt: skip
    name, dtype = FORMATS[section["format"]]
    groups = section.get("config_groups")
    expected = EIGHT_BITS if dtype == INT8 else FOUR_BITS
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        found = {key: weights.get(key) for key in expected} if isinstance(weights, dict) else {}
        if dtype == INT8 and isinstance(weights, dict):
            found["group_size"] = None if weights.get("strategy", "channel") == "channel" else weights.get("strategy")
        if found != expected:
            wrong = ", ".join(f"{key} {found.get(key)}" for key in expected if found.get(key) != expected[key])
            of = "groups of 32" if dtype == INT4 else "one scale a row"
            raise UserError(f"{where}: its weights have {wrong}; nano3 reads {expected['num_bits']} bits, symmetric, "
                            f"with {of}")  # fmt: skip
    return name


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
