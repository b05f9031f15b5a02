"""A model's name to a running engine: one way in for every verb that generates."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nano3.config.errors import UserError
from nano3.data.tokens.tokenizer import SMALLEST_VOCABULARY, Tokenizer
from nano3.engine.protocol import GenerationEngine
from nano3.model.find import is_adapter_folder, local_model, model_folder, model_name

if TYPE_CHECKING:
    import torch

    from nano3.model.lm import LM

ENGINES = ("native", "vllm")
DTYPES = ("auto", "float32", "bfloat16")
CACHE_DTYPES = ("auto", "bfloat16", "fp8")
BASE_NOTE = "{name} is a base model: it has never seen a conversation; thinking is off unless asked for"
SAMPLE_TEXTS = (
    "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs.\n",
    'def add(a: int, b: int) -> int:\n    """The sum of two numbers."""\n    return a + b\n',
    '{"name": "get_weather", "arguments": {"city": "Rome", "days": 3, "unit": "c"}}\n',
    "<tool_call>\n<function=search>\n<parameter=query>\nopen source\n</parameter>\n</function>\n</tool_call>\n",
)
"""What a preset's tokenizer is trained on; any text would do for random weights."""


def open_engine(
    model: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    memory: int | None = None,
    max_sequences: int | None = None,
    max_context: int | None = None,
    engine: str = "native",
    speculate: int = 0,
    kv_cache_dtype: str = "auto",
    native_options: Mapping[str, Any] | None = None,
    vllm_arguments: Mapping[str, Any] | None = None,
) -> tuple[GenerationEngine, str]:
    """Load a model and its tokenizer into an engine; what had to be lowered is said on stderr.

    Args:
        model: a run folder, a Hugging Face folder or hub id, a LoRA adapter's folder, or a model preset (random weights
            and a small tokenizer).
        dtype: of the weights: auto (as stored, or what is fast), float32 or bfloat16; a CPU without bfloat16 products
            computes in float32 all the same.
        device: auto (CUDA where there is one), cpu, cuda or cuda:N.
        memory: bytes for sequences and the prefix cache; None: a share of what is free.
        max_sequences: most sequences computed at once; None: the engine's own default.
        max_context: most tokens of prompt and output together; None: what the model was made for.
        engine: native or vllm.
        speculate: tokens guessed ahead a step; 0: none.
        kv_cache_dtype: of keys and values: auto (as the activations), bfloat16, or fp8 with the scales in the model's
            folder, in which twice as many fit.
        native_options: further settings of the native engine, by the names of `Engine`; vLLM has its own.
        vllm_arguments: further settings of vLLM, by the names of its EngineArgs.

    Returns:
        The engine, and the model's name for clients: the folder's or the preset's.

    Raises:
        UserError: no such model, no tokenizer with it, or an option that cannot be met.
    """
    for name, value, known in (
        ("--engine", engine, ENGINES),
        ("--dtype", dtype, DTYPES),
        ("--kv-cache-dtype", kv_cache_dtype, CACHE_DTYPES),
    ):
        if value not in known:
            raise UserError(f"{name} {value}: not known; use one of {', '.join(known)}")
    model = local_model(model)
    name = model_name(model)
    options: dict[str, Any] = {
        key: value for key, value in (("max_sequences", max_sequences), ("max_context", max_context)) if value
    }
    if engine == "vllm":
        if speculate or device == "cpu" or kv_cache_dtype != "auto":
            raise UserError(
                "--engine vllm: n-gram speculation, the CPU and --kv-cache-dtype are the native engine's only"
            )
        return _open_vllm(model, dtype, memory, options | {"arguments": vllm_arguments or {}}), name
    if vllm_arguments:
        raise UserError(f"--engine-arg {next(iter(vllm_arguments))}: a setting of vLLM; add --engine vllm")
    native = {"memory": memory, "speculate": speculate, **options, **(native_options or {})}
    return _open_native(model, dtype, find_device(device), kv_cache_dtype, native), name


def _open_native(
    model: str, dtype: str, where: torch.device, kv_cache_dtype: str, options: Mapping[str, Any]
) -> GenerationEngine:
    from nano3.engine.engine import Engine

    tokenizer = find_tokenizer(model)
    lm = _load(model, dtype, where)
    if tokenizer is None:
        tokenizer = small_tokenizer(lm.cfg.vocab_size)
        _say(f"{model}: a preset has no training behind it: random weights, and a tokenizer of {tokenizer.vocab_size} "
             "tokens made on the spot")  # fmt: skip
    native = Engine(lm, tokenizer, kv_dtype=_settle_cache(lm, model, kv_cache_dtype), **options)
    for note in native.sizes.notes:
        _say(note)
    return native


def find_device(name: str) -> torch.device:
    """The device that a name stands for. Raises UserError where there is none."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: not a device; use auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def is_base_model(model: str) -> bool:
    """Whether a folder's model comes from pretraining alone, and so has never seen a conversation. A preset has no
    training behind it, and a folder from elsewhere does not say."""
    if not Path(model).exists():
        return False
    from nano3.model.hf.config import PRETRAINED
    from nano3.model.stage import weights_stage

    return weights_stage(model) == PRETRAINED


def find_tokenizer(model: str) -> Tokenizer | None:
    """The tokenizer in a model's folder, or in an adapter's where that has its own; None for a preset.

    Raises:
        UserError: a folder without one.
    """
    if not Path(model).exists():
        return None
    own = is_adapter_folder(model) and (Path(model) / "tokenizer.json").is_file()
    folder = Path(model) if own else model_folder(model)
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder}: no tokenizer.json; put the tokenizer of the model beside its weights")
    return Tokenizer.load(folder)


def small_tokenizer(vocab_size: int) -> Tokenizer:
    """A byte-level tokenizer for random weights: always the same, never more than `vocab_size` ids.

    Raises:
        UserError: the model's vocabulary has no room for all bytes.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise UserError(
            f"a vocabulary of {vocab_size} is too small for a tokenizer; the least is {SMALLEST_VOCABULARY}"
        )
    return Tokenizer.train(SAMPLE_TEXTS, min(vocab_size, SMALLEST_VOCABULARY + 256))


def _load(model: str, dtype: str, device: torch.device) -> LM:
    """Weights in the type that they are computed with; raises UserError where they cannot fit."""
    import torch

    from nano3.config.presets import load_model as load_preset
    from nano3.config.presets import preset_names
    from nano3.engine.sizing import check_room
    from nano3.model.count import count_parameters
    from nano3.model.dtype import inference_dtypes
    from nano3.model.hf.folder import stored_dtype, weight_bytes
    from nano3.model.load import load_model

    folder = model_folder(model) if Path(model).exists() else None
    weights, activations = inference_dtypes(dtype, device, stored_dtype(folder) if folder else torch.float32)
    if folder is not None:
        check_room(model, weight_bytes(folder, weights), weights, device)
    elif model in preset_names("models"):
        check_room(model, count_parameters(load_preset(model)).total * weights.itemsize, weights, device)
    lm = load_model(model, weights, str(device))
    if is_adapter_folder(model):
        _settle_adapters(lm, model)
    return lm.to_dtype(weights, activations)


def cache_dtype(name: str) -> torch.dtype | None:
    """Type of keys and values by its name of CACHE_DTYPES; None: as the activations."""
    import torch

    return {"bfloat16": torch.bfloat16, "fp8": torch.float8_e4m3fn}.get(name)


def _settle_cache(lm: LM, model: str, name: str) -> torch.dtype | None:
    """Type of keys and values in the engine's pages; for fp8 the model rounds to it from now on.

    Raises:
        UserError: fp8 without scales.
    """
    if name == "fp8":
        try:
            lm.use_fp8_cache()
        except ValueError as error:
            raise UserError(f"{model}: --kv-cache-dtype fp8: {error}: take a folder of `nano3 quantize`") from None
    return cache_dtype(name)


def _settle_adapters(lm: LM, model: str) -> None:
    """Merge adapters in memory, since unmerged ones take several times as long; quantized weights cannot hold them."""
    from nano3.model.lora.merge import is_quantized, merge

    if is_quantized(lm):
        _say(
            f"{model}: its base is quantized, so the adapter is computed beside it; that is slower than merged weights"
        )
        return
    merge(lm)
    _say(f"{model}: the adapter is merged into the weights in memory")


def _open_vllm(model: str, dtype: str, memory: int | None, options: dict[str, Any]) -> GenerationEngine:
    from nano3.engine.vllm.engine import VllmEngine

    return VllmEngine(model, dtype=dtype, memory=memory, **options)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
