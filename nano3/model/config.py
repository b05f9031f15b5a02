"""config.json of Hugging Face's `nemotron_h` to ModelConfig and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.config.model import ATTENTION, MAMBA, MLP, MOE, ModelConfig
from nano3.model.quantization import read_quantization
from nano3.reading import read_json

LAYER_TYPES = {MAMBA: "linear_attention", MOE: "moe", ATTENTION: "full_attention", MLP: "mlp"}
# Names that other versions of transformers write for the same blocks.
SYMBOLS = {name: symbol for symbol, name in LAYER_TYPES.items()} | {"mamba": MAMBA, "attention": ATTENTION}

# ModelConfig field -> config.json key
KEYS = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "norm_eps": "layer_norm_epsilon",
    "init_std": "initializer_range",
    "rescale_prenorm_residual": "rescale_prenorm_residual",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "mamba_n_heads": "mamba_num_heads",
    "mamba_head_dim": "mamba_head_dim",
    "d_state": "ssm_state_size",
    "n_groups": "n_groups",
    "d_conv": "conv_kernel",
    "chunk_size": "chunk_size",
    "dt_min": "time_step_min",
    "dt_max": "time_step_max",
    "dt_floor": "time_step_floor",
    "n_experts": "n_routed_experts",
    "top_k": "num_experts_per_tok",
    "d_expert": "moe_intermediate_size",
    "d_shared": "moe_shared_expert_intermediate_size",
    "routed_scale": "routed_scaling_factor",
    "d_ff": "intermediate_size",
    "max_position_embeddings": "max_position_embeddings",
    "bos_id": "bos_token_id",
    "eos_id": "eos_token_id",
    "pad_id": "pad_token_id",
}
# Fields that may be missing: they steer training from new weights, or are advice. All others say what the model is.
OPTIONAL = {
    *("init_std", "rescale_prenorm_residual", "chunk_size", "dt_min", "dt_max", "dt_floor"),
    *("max_position_embeddings", "bos_id", "eos_id", "pad_id"),
}
# Fields that only blocks of one kind have.
ONLY_IN = {
    MAMBA: ("mamba_n_heads", "mamba_head_dim", "d_state", "n_groups", "d_conv"),
    MOE: ("n_experts", "top_k", "d_expert", "d_shared", "routed_scale"),
    ATTENTION: ("n_heads", "n_kv_heads", "head_dim"),
    MLP: ("d_ff",),
}
# Keys with one supported value: what the report's model has.
FIXED = {
    "attention_bias": False,
    "mamba_proj_bias": False,
    "mlp_bias": False,
    "use_bias": False,
    "use_conv_bias": True,
    "tie_word_embeddings": False,
    "mamba_hidden_act": "silu",
    "mlp_hidden_act": "relu2",
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "residual_in_fp32": False,
}
# Extensions of later family members that this model does not have: absent, null or zero only.
ABSENT = ("moe_latent_size", "num_nextn_predict_layers", "sliding_window")

STAGE_KEY, PRETRAINED = "nano3_stage", "pretrain"
"""nano3's own key of config.json, which other programs ignore: the stage that the weights came from. Models of
pretraining have never seen a conversation."""


def read_config(path: str | Path) -> ModelConfig:
    """ModelConfig of a Hugging Face folder or of its config.json.

    Raises:
        UserError: no config.json, invalid JSON, another architecture, or a feature that nano3 does not have.
    """
    file = _file(path)
    keys = _keys(file)
    cfg, quantization = from_hf(keys, str(file)), read_quantization(file.parent, keys)
    return cfg if quantization is None else replace(cfg, quantization=quantization)


def read_stage(path: str | Path) -> str:
    """The stage that a folder's weights came from, as nano3 wrote it down; empty where it is not known.

    Raises:
        UserError: no config.json, or invalid JSON.
    """
    stage = _keys(_file(path)).get(STAGE_KEY)
    return stage if isinstance(stage, str) else ""


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path / "config.json" if path.is_dir() else path


def _keys(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"{file}: no such file; give a Hugging Face folder with a config.json of model_type nemotron_h")
    try:
        keys = read_json(file)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    if not isinstance(keys, dict):
        raise UserError(f"{file}: expected a JSON object")
    return keys


def from_hf(keys: dict[str, Any], where: str = "config.json") -> ModelConfig:
    """ModelConfig from the keys of a config.json; `where` names the file in errors."""
    if keys.get("model_type") != "nemotron_h":
        raise UserError(f"{where}: model_type is {keys.get('model_type')!r}; nano3 reads nemotron_h only")
    _check_supported(keys, where)
    fields: dict[str, Any] = {"pattern": _pattern(keys, where)}
    for field, key in KEYS.items():
        if keys.get(key) is not None:
            value = keys[key]
            fields[field] = value[0] if key == "eos_token_id" and isinstance(value, list) else value
    if keys.get("n_shared_experts") == 0:
        fields["d_shared"] = 0
    _check_complete(fields, where)
    try:
        return ModelConfig(**fields)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from None


def to_hf(cfg: ModelConfig, dtype: str = "float32") -> dict[str, Any]:
    """Keys of a config.json that transformers, vLLM and llama.cpp read; `dtype` is the dtype of the stored weights."""
    return {
        "architectures": ["NemotronHForCausalLM"],
        "model_type": "nemotron_h",
        "dtype": dtype,
        "torch_dtype": dtype,
        "num_hidden_layers": cfg.n_blocks,
        "hybrid_override_pattern": cfg.pattern,
        "layers_block_type": [LAYER_TYPES[symbol] for symbol in cfg.pattern],
        **{key: getattr(cfg, field) for field, key in KEYS.items()},
        **FIXED,
        "expand": 2,
        "n_shared_experts": 1 if cfg.d_shared else 0,
        "time_step_limit": [0.0, float("inf")],
        "mamba_ssm_cache_dtype": "float32",
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "use_cache": True,
    }


def _pattern(keys: dict[str, Any], where: str) -> str:
    types = keys.get("layers_block_type") or keys.get("layer_types")
    pattern = keys.get("hybrid_override_pattern")
    if types:
        unknown = [t for t in types if t not in SYMBOLS]
        if unknown:
            raise UserError(
                f"{where}: layers_block_type has unknown types {sorted(set(unknown))}; valid: {list(SYMBOLS)}"
            )
        from_types = "".join(SYMBOLS[t] for t in types)
        if pattern and pattern != from_types:
            raise UserError(f"{where}: hybrid_override_pattern {pattern} contradicts layers_block_type {from_types}")
        return from_types
    if not pattern or not isinstance(pattern, str):
        raise UserError(f"{where}: hybrid_override_pattern or layers_block_type must say which blocks the model has")
    return pattern


def _check_complete(fields: dict[str, Any], where: str) -> None:
    """Raise UserError for a key that the pattern's blocks need and that has no value."""
    unused = {field for symbol, names in ONLY_IN.items() if symbol not in fields["pattern"] for field in names}
    for field, key in KEYS.items():
        if field not in fields and field not in OPTIONAL | unused:
            raise UserError(f"{where}: {key} is missing; add the value that the weights were trained with")


def _check_supported(keys: dict[str, Any], where: str) -> None:
    for key, value in FIXED.items():
        if keys.get(key, value) != value:
            raise UserError(f"{where}: {key} is {keys[key]!r}; nano3 supports {value!r} only")
    for key in ABSENT:
        if keys.get(key):
            raise UserError(f"{where}: {key} is {keys[key]!r}; nano3 does not support it")
    limit = keys.get("time_step_limit")
    if limit is not None and not _is_unlimited(limit):
        raise UserError(f"{where}: time_step_limit is {limit!r}; nano3 supports (0, inf) only")


def _is_unlimited(limit: Any) -> bool:
    """True for [0, inf]; newer transformers writes inf as {"__float__": "Infinity"}."""
    low, high = limit
    high = high.get("__float__", "nan") if isinstance(high, dict) else high
    return float(low) == 0.0 and float(high) == float("inf")
