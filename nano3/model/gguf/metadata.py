"""The sizes of a model in a GGUF file's metadata, under llama.cpp's keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nano3.config.errors import UserError
from nano3.config.model import ATTENTION, MAMBA, MLP, MOE, ModelConfig
from nano3.model.gguf.names import DENSE, SPARSE

STAGE = "nano3.stage"
"""nano3's own key: the stage that the weights came from."""
# ModelConfig field -> what ends llama.cpp's key; the blocks that have it.
_SIZES = {
    "d_model": ("embedding_length", ""),
    "max_position_embeddings": ("context_length", ""),
    "n_heads": ("attention.head_count", ATTENTION),
    "head_dim": ("attention.key_length", ATTENTION),
    "d_conv": ("ssm.conv_kernel", MAMBA),
    "d_state": ("ssm.state_size", MAMBA),
    "n_groups": ("ssm.group_count", MAMBA),
    "mamba_n_heads": ("ssm.time_step_rank", MAMBA),
    "n_experts": ("expert_count", MOE),
    "top_k": ("expert_used_count", MOE),
    "d_expert": ("expert_feed_forward_length", MOE),
    "d_shared": ("expert_shared_feed_forward_length", MOE),
}
_ONLY = {"expert_weights_norm": (True,), "expert_group_count": (0, 1), "expert_group_used_count": (0, 1),
         "nextn_predict_layers": (0,), "moe_latent_size": (0,), "attention.sliding_window": (0,),
         "expert_shared_count": (1,), "attention.scale": (0.0,)}  # fmt: skip
"""What ends a key -> its values, where it is there, that nano3's model is."""
LARGEST = 2**31


def check_exportable(cfg: ModelConfig) -> None:
    """
    Raises:
        UserError: llama.cpp has no such architecture.
    """
    if MOE in cfg.pattern and (MLP in cfg.pattern or not cfg.d_shared):
        raise UserError(f"llama.cpp cannot run blocks {cfg.pattern}: with {MOE} it wants a shared expert and no {MLP}")


def describe(writer: Any, cfg: ModelConfig) -> None:
    """Write the sizes to a gguf.GGUFWriter. llama.cpp tells blocks apart by key heads and hidden width, one entry a
    block."""
    writer.add_context_length(cfg.max_position_embeddings)
    writer.add_block_count(len(cfg.pattern))
    writer.add_embedding_length(cfg.d_model)
    writer.add_vocab_size(cfg.vocab_size)
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
    if MOE in cfg.pattern:
        _describe_experts(writer, cfg)


def _describe_experts(writer: Any, cfg: ModelConfig) -> None:
    writer.add_expert_feed_forward_length(cfg.d_expert)
    writer.add_expert_shared_feed_forward_length(cfg.d_shared)
    writer.add_expert_count(cfg.n_experts)
    writer.add_expert_used_count(cfg.top_k)
    writer.add_expert_shared_count(1)
    writer.add_expert_weights_norm(True)
    writer.add_expert_weights_scale(cfg.routed_scale)
    writer.add_expert_group_count(1)
    writer.add_expert_group_used_count(1)


def read_model_config(fields: Mapping[str, Any], where: str) -> ModelConfig:
    """The sizes that a file's metadata tells.

    Args:
        fields: metadata by key.
        where: the file, for errors.

    Raises:
        UserError: another architecture, a size that is missing or impossible, or a feature that nano3 does not have.
    """
    architecture = fields.get("general.architecture")
    if architecture not in (DENSE, SPARSE):
        raise UserError(f"{where}: is a model of {architecture!r}; nano3 reads {DENSE} and {SPARSE}")
    own = {key.removeprefix(f"{architecture}."): value for key, value in fields.items()}
    for key, values in _ONLY.items():
        if key in own and own[key] not in values:
            raise UserError(f"{where}: {architecture}.{key} is {own[key]!r}, which nano3 does not support")
    pattern, kv_heads, d_ff = _blocks(own, architecture, where)
    sizes: dict[str, Any] = {"pattern": pattern, "vocab_size": _vocab_size(fields, own, where)}
    for field, (key, symbol) in _SIZES.items():
        if not symbol or symbol in pattern:
            sizes[field] = _size(own, key, where)
    if MAMBA in pattern:
        inner, heads = _size(own, "ssm.inner_size", where), sizes["mamba_n_heads"]
        if heads < 1 or inner % heads:
            raise UserError(f"{where}: ssm.inner_size {inner} is no multiple of ssm.time_step_rank {heads}")
        sizes["mamba_head_dim"] = inner // heads
    sizes |= {"n_kv_heads": kv_heads} if ATTENTION in pattern else {}
    sizes |= {"d_ff": d_ff} if MLP in pattern else {}
    sizes |= _numbers(own, where, MOE in pattern)
    for field, key in (("bos_id", "bos_token_id"), ("eos_id", "eos_token_id"), ("pad_id", "padding_token_id")):
        if isinstance(value := fields.get(f"tokenizer.ggml.{key}"), int):
            sizes[field] = value
    if isinstance(own_bos := fields.get("nano3.bos_token_id"), int):
        sizes["bos_id"] = own_bos
    try:
        return ModelConfig(**sizes)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from None


def _numbers(own: Mapping[str, Any], where: str, sparse: bool) -> dict[str, float]:
    """Sizes that are no whole numbers."""
    wanted = {"norm_eps": "attention.layer_norm_rms_epsilon"}
    if sparse:
        wanted["routed_scale"] = "expert_weights_scale"
    found = {field: own.get(key) for field, key in wanted.items()}
    for field, value in found.items():
        if not isinstance(value, float):
            raise UserError(f"{where}: {wanted[field]} is {value!r}; it must be a number")
    # A file holds float32; its shortest decimal form is what was meant.
    return {field: float(f"{value:.7g}") for field, value in found.items()}


def _blocks(own: Mapping[str, Any], architecture: str, where: str) -> tuple[str, int, int]:
    """The pattern, the key/value heads of attention blocks, and the width of dense MLPs."""
    count = _size(own, "block_count", where)
    heads, widths = (_a_block(own, key, count, where) for key in ("attention.head_count_kv", "feed_forward_length"))
    wide = MOE if architecture == SPARSE else MLP
    pattern = "".join(
        ATTENTION if kv and not width else wide if width else MAMBA for kv, width in zip(heads, widths, strict=True)
    )
    sets = [{n for n, symbol in zip(values, pattern, strict=True) if symbol == which}
            for values, which in ((heads, ATTENTION), (widths, MLP))]  # fmt: skip
    if any(len(found) > 1 for found in sets):
        raise UserError(f"{where}: its blocks of one kind have different sizes, which nano3 does not support")
    return pattern, *(next(iter(found), 0) for found in sets)  # pyright: ignore


def _a_block(own: Mapping[str, Any], key: str, count: int, where: str) -> list[int]:
    """One entry a block."""
    value = own.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        value = [value] * count
    if not isinstance(value, list) or len(value) != count or not all(isinstance(n, int) and n >= 0 for n in value):
        raise UserError(f"{where}: {key} must have a number for each of {count} blocks; copy the file again")
    return value


def _size(own: Mapping[str, Any], key: str, where: str) -> int:
    value = own.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < LARGEST:
        raise UserError(f"{where}: {key} is {value!r}; it must be a whole number")
    return value


def _vocab_size(fields: Mapping[str, Any], own: Mapping[str, Any], where: str) -> int:
    tokens = fields.get("tokenizer.ggml.tokens")
    return _size({"vocab_size": len(tokens)} if isinstance(tokens, list) else own, "vocab_size", where)
