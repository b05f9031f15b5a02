"""All matrices of a model as integers of 8 or 4 bits: what processors without FP8 are fast with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from nano3.config.errors import UserError
from nano3.kernels import Scaled, quantize_int4, quantize_int8
from nano3.kernels.integers import GROUP
from nano3.kernels.scaled import FLOATS
from nano3.model.layers import Linear
from nano3.model.lm import LM
from nano3.model.moe import Experts

QUANTIZE: dict[int, Callable[[Tensor], Scaled]] = {8: quantize_int8, 4: quantize_int4}


@torch.no_grad()
def quantize_integers(model: LM, bits: Literal[8, 4]) -> None:
    """Every linear layer, the output projection and all experts, in place; embeddings, convolutions, routers and norms
    stay as they are. Nothing is calibrated: weights are rounded as nano3.kernels.integers says, activations as they
    come. One expert at a time is held in both forms.

    Raises:
        UserError: 4 bits, and a matrix whose rows are no multiple of 32; or a number that is not finite. The model may
            be quantized in part then.
    """
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            module.use_scaled(_quantized(module.weight, bits, name))
        elif isinstance(module, Experts):
            for leaf in ("up_proj", "down_proj"):
                each = [_quantized(w, bits, f"{name}.{leaf}") for w in module.get_parameter(leaf)]
                stacked = (torch.stack(parts) for parts in ([w.data for w in each], [w.scale for w in each]))
                module.use_scaled(leaf, Scaled(*stacked))


def _quantized(weight: Tensor, bits: Literal[8, 4], name: str) -> Scaled:
    if weight.dtype not in FLOATS:
        raise UserError(f"{name}: is quantized already; give the model as it was before")
    if bits == 4 and weight.shape[-1] % GROUP:
        raise UserError(f"{name}: rows of {weight.shape[-1]} numbers do not divide into groups of {GROUP}, in which 4 "
                        "bits are stored; take 8 bits")  # fmt: skip
    if not bool(weight.isfinite().all()):
        raise UserError(f"{name}: holds a number that is not finite")
    return QUANTIZE[bits](weight.detach())
