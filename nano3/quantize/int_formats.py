"""All matrices of a model as integers of 8 or 4 bits: what processors without FP8 are fast with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from nano3.config.errors import UserError
from nano3.config.model import ModelConfig
from nano3.kernels import Scaled, quantize_int4, quantize_int8
from nano3.kernels.integers import GROUP
from nano3.kernels.scaled import FLOATS, INT4, INT8
from nano3.model.hf.integers import empty
from nano3.model.layers import Linear
from nano3.model.lm import LM
from nano3.model.moe import Experts

QUANTIZE: dict[int, Callable[[Tensor], Scaled]] = {8: quantize_int8, 4: quantize_int4}
TYPES = {8: INT8, 4: INT4}
Bits = Literal[8, 4]
ROWS = 64
"""Of a matrix at a time: what quantizing makes on its way stays in the processor's caches, which is twice as fast."""


@torch.no_grad()
def quantize_integers(model: LM, bits: Bits) -> None:
    """Every linear layer, the output projection and all experts, in place; embeddings, convolutions, routers and norms
    stay as they are. Nothing is calibrated: weights are rounded as nano3.kernels.integers says, activations as they
    come. One expert at a time is held in both forms.

    Raises:
        UserError: 4 bits, and a matrix whose rows are no multiple of 32; or a number that is not finite. The model may
            be quantized in part then.
    """
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            module.use_scaled(quantize_matrix(module.weight, bits, name))
        elif isinstance(module, Experts):
            for leaf in ("up_proj", "down_proj"):
                each = [quantize_matrix(w, bits, f"{name}.{leaf}") for w in module.get_parameter(leaf)]
                stacked = (torch.stack(parts) for parts in ([w.data for w in each], [w.scale for w in each]))
                module.use_scaled(leaf, Scaled(*stacked))


def integer_model(cfg: ModelConfig, bits: Bits) -> LM:
    """A model without numbers, on the meta device, whose matrices are those that `quantize_integers` makes.

    Raises:
        UserError: 4 bits, and a matrix whose rows are no multiple of 32.
    """
    with torch.device("meta"):
        model = LM(cfg)
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            _check_width(module.weight, bits, name)
            module.use_scaled(empty(module.weight, TYPES[bits]))
        elif isinstance(module, Experts):
            for leaf in ("up_proj", "down_proj"):
                _check_width(module.get_parameter(leaf), bits, f"{name}.{leaf}")
                module.use_scaled(leaf, empty(module.get_parameter(leaf), TYPES[bits]))
    return model


def quantize_matrix(weight: Tensor, bits: Bits, name: str) -> Scaled:
    """A matrix (O, I) as integers.

    Raises:
        UserError: it is quantized already, holds a number that is not finite, or does not divide into groups.
    """
    if weight.dtype not in FLOATS:
        raise UserError(f"{name}: is quantized already; give the model as it was before")
    _check_width(weight, bits, name)
    if not bool(weight.isfinite().all()):
        raise UserError(f"{name}: holds a number that is not finite")
    parts = [QUANTIZE[bits](rows) for rows in weight.detach().split(ROWS)]
    return Scaled(torch.cat([part.data for part in parts]), torch.cat([part.scale for part in parts]))


def _check_width(weight: Tensor, bits: Bits, name: str) -> None:
    if bits == 4 and weight.shape[-1] % GROUP:
        raise UserError(f"{name}: rows of {weight.shape[-1]} numbers do not divide into groups of {GROUP}, in which 4 "
                        "bits are stored; take 8 bits")  # fmt: skip
