"""A GGUF file of a model's weights for llama.cpp (its architectures `nemotron_h` and `nemotron_h_moe`), without a
tokenizer.

Needs the package `gguf`. llama.cpp's own convert_hf_to_gguf.py wants a tokenizer that it knows; a benchmark has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from nano3.config.errors import UserError
from nano3.config.model import ATTENTION, MLP, MOE, ModelConfig
from nano3.model.lm import LM

DENSE, SPARSE = "nemotron_h", "nemotron_h_moe"
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
MATRICES = (
    "in_proj",
    "out_proj",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "up_proj",
    "down_proj",
    "embeddings",
    "lm_head",
)
"""What is stored in the file's type; the rest is small and stays in float32, as llama.cpp wants it."""


def write_gguf(model: LM, path: Path, dtype: torch.dtype) -> None:
    """Write `path` with matrices in `dtype` (float32 or bfloat16).

    Raises:
        UserError: llama.cpp has no such architecture.
    """
    import gguf

    cfg = model.cfg
    _check(cfg)
    writer = gguf.GGUFWriter(path, SPARSE if MOE in cfg.pattern else DENSE)
    _describe(writer, cfg)
    if MOE in cfg.pattern:
        _describe_experts(writer, cfg)
    narrow = dtype == torch.bfloat16
    for name, tensor in _tensors(model):
        if narrow and any(matrix in name for matrix in MATRICES):
            bits = tensor.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
            writer.add_tensor(_published(name), bits, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(_published(name), tensor.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _check(cfg: ModelConfig) -> None:
    if MOE in cfg.pattern and (MLP in cfg.pattern or not cfg.d_shared):
        raise UserError(
            f"--against llama.cpp: it cannot run blocks {cfg.pattern}: with {MOE} it wants a shared expert and no {MLP}"
        )


def _describe(writer, cfg: ModelConfig) -> None:
    """Sizes under llama.cpp's keys; it tells blocks apart by key heads and hidden width, one entry a block."""
    writer.add_context_length(cfg.max_position_embeddings)
    writer.add_block_count(len(cfg.pattern))
    writer.add_embedding_length(cfg.d_model)
    writer.add_vocab_size(cfg.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_layer_norm_eps(cfg.norm_eps)
    writer.add_layer_norm_rms_eps(cfg.norm_eps)
    writer.add_rope_scaling_finetuned(False)
    writer.add_head_count(cfg.n_heads)
    writer.add_head_count_kv([cfg.n_kv_heads if symbol == ATTENTION else 0 for symbol in cfg.pattern])
    writer.add_key_length(cfg.head_dim)
    writer.add_value_length(cfg.head_dim)
    writer.add_ssm_conv_kernel(cfg.d_conv)
    writer.add_ssm_state_size(cfg.d_state)
    writer.add_ssm_group_count(cfg.n_groups)
    writer.add_ssm_inner_size(cfg.d_inner)
    writer.add_ssm_time_step_rank(cfg.mamba_n_heads)
    widths = {MOE: cfg.d_expert, MLP: cfg.d_ff}
    writer.add_feed_forward_length([widths.get(symbol, 0) for symbol in cfg.pattern])


def _describe_experts(writer, cfg: ModelConfig) -> None:
    writer.add_expert_feed_forward_length(cfg.d_expert)
    writer.add_expert_shared_feed_forward_length(cfg.d_shared)
    writer.add_expert_count(cfg.n_experts)
    writer.add_expert_used_count(cfg.top_k)
    writer.add_expert_shared_count(1)
    writer.add_expert_weights_norm(True)
    writer.add_expert_weights_scale(cfg.routed_scale)
    writer.add_expert_group_count(1)
    writer.add_expert_group_used_count(1)


def _tensors(model: LM) -> Iterator[tuple[str, Tensor]]:
    """Every tensor by nano3's name, in the shape that llama.cpp wants."""
    groups = model.cfg.n_groups
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            tensor = tensor.detach()
            if name.endswith(".conv1d.weight"):
                tensor = tensor.squeeze(1)
            elif name.endswith(".A_log"):
                tensor = -torch.exp(tensor.float()).unsqueeze(-1)
            elif name.endswith(".D"):
                tensor = tensor.unsqueeze(-1)
            elif name.endswith(".mixer.norm.weight"):
                tensor = tensor.unflatten(0, (groups, -1))
            yield name, tensor


def _published(name: str) -> str:
    if name in WHOLE:
        return WHOLE[name]
    _, block, part = name.split(".", 2)
    return f"blk.{block}.{PARTS[part]}"
