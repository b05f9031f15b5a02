"""Names and shapes of a model's tensors: nano3's, and llama.cpp's of `nemotron_h` and `nemotron_h_moe`."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

DENSE, SPARSE = "nemotron_h", "nemotron_h_moe"
"""llama.cpp's names of the architecture without and with experts."""
WHOLE = {
    "embeddings.weight": "token_embd.weight",
    "norm_f.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
PARTS = {
    "norm.weight": "attn_norm.weight",
    "mixer.in_proj.weight": "ssm_in.weight",
    "mixer.conv1d.weight": "ssm_conv1d.weight",
    "mixer.conv1d.bias": "ssm_conv1d.bias",
    "mixer.dt_bias": "ssm_dt.bias",
    "mixer.A_log": "ssm_a",
    "mixer.D": "ssm_d",
    "mixer.norm.weight": "ssm_norm.weight",
    "mixer.out_proj.weight": "ssm_out.weight",
    "mixer.q_proj.weight": "attn_q.weight",
    "mixer.k_proj.weight": "attn_k.weight",
    "mixer.v_proj.weight": "attn_v.weight",
    "mixer.o_proj.weight": "attn_output.weight",
    "mixer.up_proj.weight": "ffn_up.weight",
    "mixer.down_proj.weight": "ffn_down.weight",
    "mixer.gate.weight": "ffn_gate_inp.weight",
    "mixer.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mixer.experts.up_proj": "ffn_up_exps.weight",
    "mixer.experts.down_proj": "ffn_down_exps.weight",
    "mixer.shared_experts.up_proj.weight": "ffn_up_shexp.weight",
    "mixer.shared_experts.down_proj.weight": "ffn_down_shexp.weight",
}
"""nano3's name of a block's tensor -> llama.cpp's."""
_WHOLE_BACK = {theirs: ours for ours, theirs in WHOLE.items()}
_PARTS_BACK = {theirs: ours for ours, theirs in PARTS.items()}
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
OUTPUT = "lm_head.weight"
_MATRICES = ("embeddings.weight", OUTPUT, "_proj", "_proj.weight")


def is_matrix(name: str) -> bool:
    """Whether nano3's tensor `name` is stored in the type of the file; the rest is small, and float32 as llama.cpp
    wants it."""
    return name.endswith(_MATRICES)


def gguf_name(name: str) -> str:
    """nano3's name of a tensor -> llama.cpp's."""
    if name in WHOLE:
        return WHOLE[name]
    _, block, part = name.split(".", 2)
    return f"blk.{block}.{PARTS[part]}"


def own_name(name: str) -> str | None:
    """llama.cpp's name of a tensor -> nano3's; None for one that this model does not have."""
    if name in _WHOLE_BACK:
        return _WHOLE_BACK[name]
    found = _BLOCK.fullmatch(name)
    part = _PARTS_BACK.get(found[2]) if found else None
    return f"blocks.{int(found[1])}.{part}" if found and part else None


def to_gguf(name: str, tensor: Tensor, n_groups: int) -> Tensor:
    """A tensor by nano3's name, in the shape and with the numbers that llama.cpp wants."""
    if name.endswith(".conv1d.weight"):
        return tensor.squeeze(1)
    if name.endswith(".A_log"):
        return -torch.exp(tensor.float()).unsqueeze(-1)
    if name.endswith(".D"):
        return tensor.unsqueeze(-1)
    if name.endswith(".mixer.norm.weight"):
        return tensor.unflatten(0, (n_groups, -1))
    return tensor


def from_gguf(name: str, tensor: Tensor) -> Tensor:
    """What `to_gguf` made of nano3's tensor `name`, turned back."""
    if name.endswith(".A_log"):
        return torch.log(-tensor.float()).reshape(-1)
    return tensor.reshape(own_shape(name, tuple(tensor.shape)))


def own_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """nano3's shape of its tensor `name` that has this shape in a file."""
    if name.endswith(".conv1d.weight") and len(shape) == 2:
        return (shape[0], 1, shape[1])
    if name.endswith((".A_log", ".D", ".mixer.norm.weight")):
        return (math.prod(shape),)
    return shape
