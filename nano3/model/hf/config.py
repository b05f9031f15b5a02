"""config.json of Hugging Face's `nemotron_h` to ModelConfig and back."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.config.model import ATTENTION, MAMBA, MLP, MOE, ModelConfig
from nano3.config.typed import field_types
from nano3.model.hf.quantization import read_quantization
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
# config.json key -> names that older members of the family have for it.
OLDER_NAMES = {"head_dim": ("attention_head_dim",), "layer_norm_epsilon": ("rms_norm_eps", "norm_eps")}
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
# Keys of FIXED and ABSENT that say something of blocks of some kinds only; a model without these may have any value.
CONCERNS = {
    **dict.fromkeys(("attention_bias", "sliding_window"), ATTENTION),
    **dict.fromkeys(("mamba_proj_bias", "use_bias", "use_conv_bias", "mamba_hidden_act", "time_step_limit"), MAMBA),
    **dict.fromkeys(("mlp_bias", "mlp_hidden_act"), MLP + MOE),
    **dict.fromkeys(("n_group", "topk_group", "norm_topk_prob", "moe_latent_size"), MOE),
}
LARGEST, LONGEST_SHOWN = 2**31, 80
"""Beyond every size that a model could have; most characters of a value in an error."""

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
    """ModelConfig from the keys of a config.json; `where` names the file in errors.

    Raises:
        UserError: another architecture, a key that is missing or of the wrong type, or a feature that nano3 lacks.
    """
    if keys.get("model_type") != "nemotron_h":
        raise UserError(f"{where}: model_type is {keys.get('model_type')!r}; nano3 reads nemotron_h only")
    fields: dict[str, Any] = {"pattern": _pattern(keys, where)}
    _check_supported(keys, fields["pattern"], where)
    kinds = field_types(ModelConfig)
    unused = _unused(fields["pattern"])
    for field, key in KEYS.items():
        found, value = _find(keys, key, where)
        if key == "eos_token_id" and isinstance(value, list) and value:
            value = value[0]  # the one that ends a document
        if value is not None:
            # What only blocks have that this model lacks may be anything.
            with suppress(*([UserError] if field in unused else [])):
                fields[field] = _typed(value, kinds[field], f"{where}: {found}")
    if keys.get("n_shared_experts") == 0:
        fields["d_shared"] = 0
    _check_complete(fields, where)
    try:
        cfg = ModelConfig(**fields)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from None
    _check_layers(keys, cfg.pattern, where)
    return cfg


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
    """One symbol a block, from the list of their types or the string of symbols, which must agree."""
    name = "layers_block_type" if keys.get("layers_block_type") else "layer_types"
    types, pattern = keys.get(name), keys.get("hybrid_override_pattern")
    if types and not (isinstance(types, list) and all(isinstance(t, str) for t in types)):
        raise UserError(f"{where}: {name} is {_short(types)}; it must be a list of names")
    if pattern and not isinstance(pattern, str):
        raise UserError(f"{where}: hybrid_override_pattern is {_short(pattern)}; it must be a text such as 'MEM*E'")
    found = _from_types(types, pattern, name, where) if types else pattern
    if not found:
        raise UserError(f"{where}: hybrid_override_pattern or layers_block_type must say which blocks the model has")
    return found


def _check_layers(keys: dict[str, Any], pattern: str, where: str) -> None:
    """Raise UserError where num_hidden_layers is another number than that of the blocks."""
    if keys.get("num_hidden_layers") is None:
        return
    layers = _typed(keys["num_hidden_layers"], int, f"{where}: num_hidden_layers")
    if layers != len(pattern):
        raise UserError(
            f"{where}: num_hidden_layers is {layers} beside {len(pattern)} blocks {_short(pattern)}: correct the one "
            "that is wrong"
        )


def _from_types(types: list[str], pattern: str | None, name: str, where: str) -> str:
    unknown = sorted({t for t in types if t not in SYMBOLS})
    if unknown:
        raise UserError(f"{where}: {name} has unknown types {_short(unknown)}; valid: {list(SYMBOLS)}")
    found = "".join(SYMBOLS[t] for t in types)
    if pattern and pattern != found:
        raise UserError(f"{where}: hybrid_override_pattern {_short(pattern)} contradicts {name} {_short(found)}")
    return found


def _find(keys: dict[str, Any], key: str, where: str) -> tuple[str, Any]:
    """The name that a key has here, and its value; None where it has none.

    Raises:
        UserError: it stands there under two names with two values.
    """
    given = [(name, keys[name]) for name in (key, *OLDER_NAMES.get(key, ())) if keys.get(name) is not None]
    for name, value in given[1:]:
        if value != given[0][1]:
            raise UserError(f"{where}: {given[0][0]} {_short(given[0][1])} contradicts {name} {_short(value)}")
    return given[0] if given else (key, None)


def _typed(value: Any, kind: type, what: str) -> Any:
    """`value` as an int, a float or a bool: programs that rewrite JSON make 128.0 of 128, and 1 of 1.0.

    Raises:
        UserError: it is no such thing; the line begins with `what`.
    """
    if isinstance(value, bool):
        if kind is bool:
            return value
    elif isinstance(value, int | float) and kind is not bool and abs(value) < LARGEST:  # never of NaN
        if kind is float:
            return float(value)
        if value == int(value):
            return int(value)
    needed = {int: f"a whole number below {LARGEST}", float: "a number", bool: "true or false"}[kind]
    raise UserError(f"{what} is {_short(value)}; it must be {needed}")


def _short(value: Any) -> str:
    """`value` for an error message, which is one line that can be read."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def _unused(pattern: str) -> set[str]:
    """Fields that only blocks have of which there are none."""
    return {field for symbol, names in ONLY_IN.items() if symbol not in pattern for field in names}


def _check_complete(fields: dict[str, Any], where: str) -> None:
    """Raise UserError for a key that the pattern's blocks need and that has no value."""
    for field, key in KEYS.items():
        if field not in fields and field not in OPTIONAL | _unused(fields["pattern"]):
            raise UserError(f"{where}: {key} is missing; add the value that the weights were trained with")


def _check_supported(keys: dict[str, Any], pattern: str, where: str) -> None:
    """Raise UserError for what blocks of this pattern would do otherwise than nano3's."""

    def concerns(key: str) -> bool:
        return key not in CONCERNS or not set(CONCERNS[key]).isdisjoint(pattern)

    for key, value in FIXED.items():
        if concerns(key) and keys.get(key, value) != value:
            raise UserError(f"{where}: {key} is {_short(keys[key])}; nano3 supports {value!r} only")
    for key in ABSENT:
        if concerns(key) and keys.get(key):
            raise UserError(f"{where}: {key} is {_short(keys[key])}; nano3 does not support it")
    limit = keys.get("time_step_limit")
    if concerns("time_step_limit") and limit is not None and not _is_unlimited(limit):
        raise UserError(f"{where}: time_step_limit is {_short(limit)}; nano3 supports (0, inf) only")


def _is_unlimited(limit: Any) -> bool:
    """True for [0, inf]; newer transformers writes inf as {"__float__": "Infinity"}."""
    try:
        low, high = limit
        high = high.get("__float__", "nan") if isinstance(high, dict) else high
        return float(low) == 0.0 and float(high) == float("inf")
    except (TypeError, ValueError):
        return False
