"""Types of weights and activations by device."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from nano3.config.errors import UserError
from nano3.kernels import choose
from nano3.kernels.cpu.native import cpu_flags

BF16_FLAGS = {"amx_bf16", "avx512_bf16"}
"""CPU features with which bfloat16 matmuls beat float32 ones."""


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of activations: `auto` is bfloat16 on CUDA and on CPUs with bf16 matrix instructions, else float32."""
    if name != "auto":
        return _named(name, {"float32": torch.float32, "bfloat16": torch.bfloat16})
    fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else bool(BF16_FLAGS & cpu_flags())
    return torch.bfloat16 if fast else torch.float32


def inference_dtypes(name: str, device: torch.device, stored: torch.dtype) -> tuple[torch.dtype, torch.dtype]:
    """Types of (weights, activations) for generation.

    `auto` keeps weights as they are stored, but for float32 ones where bfloat16 products are fast. A CPU on which they
    are slow computes in float32, from bfloat16 weights only where C++ kernels read those as they are.

    Args:
        name: auto, float32 or bfloat16.
        device: where the model runs.
        stored: type of the weights in their folder.

    Raises:
        UserError: another name.
    """
    fast = compute_dtype("auto", device)
    weights = _named(name, {"auto": stored, "float32": torch.float32, "bfloat16": torch.bfloat16})
    if name == "auto" and fast == torch.bfloat16:
        weights = torch.bfloat16
    if device.type != "cpu" or fast == torch.bfloat16:
        return weights, weights
    narrow = weights != torch.float32 and choose("linear", device)[0] == "cpu"
    return (weights if narrow else torch.float32), torch.float32


def _named(name: str, known: Mapping[str, torch.dtype]) -> torch.dtype:
    if name not in known:
        raise UserError(f"--dtype {name}: not known; use one of {', '.join({'auto': None, **known})}")
    return known[name]
