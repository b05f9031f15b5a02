"""What a model's folder says about its quantization, made from the modules as they are (report section 4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nano3.config.errors import UserError
from nano3.kernels import Scaled
from nano3.kernels.scaled import INTEGERS
from nano3.model.attention import Attention
from nano3.model.hf.integer_section import INT4, INT8, section
from nano3.model.hf.names import published_name
from nano3.model.hf.quantization import EIGHT_BIT_FLOAT, FP8, METHOD
from nano3.model.layers import Linear
from nano3.model.lm import LM
from nano3.model.mamba2 import CausalConv1d
from nano3.model.moe import Experts
from nano3.model.router import Router


def quantization_keys(model: LM) -> tuple[dict[str, Any], dict[str, Any] | None] | None:
    """`quantization_config` of config.json, and the keys of hf_quant_config.json, which folders of integers have not;
    None where nothing is quantized.

    Every excluded name is spelled out: a pattern such as `layers.4*` means more than block 4.

    Raises:
        UserError: matrices of several formats.
    """
    weights = [w for module in model.modules() for w in _operands(module) if isinstance(w, Scaled)]
    cached = any("k_scale" in m.k_proj._buffers for m in model.modules() if isinstance(m, Attention))
    if not weights and not cached:
        return None
    formats = {w.dtype for w in weights}
    if len(formats) > 1:
        raise UserError(
            f"the model has matrices of {' and '.join(sorted(map(str, formats)))}; a folder holds one format"
        )
    if formats & INTEGERS:
        head, cache = isinstance(model.lm_head.operand(), Scaled), EIGHT_BIT_FLOAT if cached else None
        return section(INT8 if formats == {torch.int8} else INT4, _excluded(model), cache, head), None
    from nano3 import __version__

    producer = {"name": "nano3", "version": __version__}
    algorithm, cache, excluded = FP8 if weights else None, FP8 if cached else None, _excluded(model)
    group: dict[str, Any] = {"weights": EIGHT_BIT_FLOAT, "targets": ["Linear"]}
    if any(w.input_scale is not None for w in weights):
        group["input_activations"] = EIGHT_BIT_FLOAT
    config: dict[str, Any] = {"config_groups": {"group_0": group}} if weights else {}
    config |= {"ignore": excluded, "quant_algo": algorithm, "producer": producer, "quant_method": METHOD}
    config |= {"kv_cache_scheme": EIGHT_BIT_FLOAT} if cached else {}
    names = {"quant_algo": algorithm, "kv_cache_quant_algo": cache, "exclude_modules": excluded}
    return config, {"producer": producer, "quantization": names}


def _operands(module: nn.Module) -> list[Any]:
    if isinstance(module, Linear):
        return [module.operand()]
    return [module.operand("up_proj"), module.operand("down_proj")] if isinstance(module, Experts) else []


def _excluded(model: LM) -> list[str]:
    """Published names of the modules with matrices that are not quantized."""
    names = []
    for name, module in model.named_modules():
        plain = isinstance(module, nn.Embedding | CausalConv1d | Router)
        if plain or ((operands := _operands(module)) and not any(isinstance(w, Scaled) for w in operands)):
            names.append(published_name(name) + (".*" if isinstance(module, Experts) else ""))
    return names
