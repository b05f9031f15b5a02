"""Whether a context fits in memory, told before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nano3.config.errors import UserError

PAGE = 64
"""Tokens of a page of keys and values, as the engine's default."""


@dataclass(frozen=True)
class Room:
    """What a context takes, and what there is for it."""

    need: int
    """Bytes."""
    memory: int
    """Bytes that sequences may use."""
    largest: int
    """Tokens of the largest context that fits."""
    made_for: int
    """Tokens that the model was made for."""


def check_context(
    model: str, length: int, *, dtype: str, device: str, memory: int | None, kv_cache_dtype: str = "auto"
) -> tuple[str, ...]:
    """Refuse a context that the engine has no memory for; what there is to note about one that it has memory for.

    Args:
        model: as of `find_room`, as are the others.
        length: tokens of prompt and output.
        dtype: of the weights.
        device: where the model runs.
        memory: bytes for sequences.
        kv_cache_dtype: of keys and values.

    Raises:
        UserError: it does not fit; the line says what it takes and the largest context that fits.
    """
    room = find_room(model, length, dtype=dtype, device=device, memory=memory, kv_cache_dtype=kv_cache_dtype)
    if room is None:
        return ()  # loading it says so
    if room.need > room.memory:
        raise UserError(too_long(length, room.largest, room.need, room.memory))
    if length > room.made_for:
        # Advice only: no block of the model depends on positions.
        return (f"{length} tokens are more than the {room.made_for} that the model was made for",)
    return ()


def find_room(
    model: str, length: int, *, dtype: str, device: str, memory: int | None, kv_cache_dtype: str = "auto"
) -> Room | None:
    """What a context takes; None where there is no such model.

    Args:
        model: a run folder, a Hugging Face folder or a model preset.
        length: tokens of prompt and output.
        dtype: of the weights, as open_engine takes it.
        device: as open_engine takes it.
        memory: bytes for sequences; None: a share of what is free beside the weights.
        kv_cache_dtype: of keys and values, as open_engine takes it.

    Raises:
        UserError: no such device or dtype.
    """
    import torch

    from nano3.config.presets import load_model as load_preset
    from nano3.config.presets import preset_names
    from nano3.engine.launch import cache_dtype, find_device
    from nano3.engine.sizing import SHARE_OF_FREE, available_memory, bytes_of_page
    from nano3.model.count import count_parameters
    from nano3.model.dtype import inference_dtypes
    from nano3.model.find import model_folder
    from nano3.model.hf.folder import read_config, stored_dtype, weight_bytes
    from nano3.model.state.pool import slot_bytes

    where = find_device(device)
    folder = model_folder(model) if Path(model).exists() else None
    if folder is None and model not in preset_names("models"):
        return None
    cfg = read_config(folder) if folder else load_preset(model)
    weights, activations = inference_dtypes(dtype, where, stored_dtype(folder) if folder else torch.float32)
    if memory is None:
        held = weight_bytes(folder, weights) if folder else count_parameters(cfg).total * weights.itemsize
        rest = available_memory(where) - held
        memory = int(max(0, rest) * SHARE_OF_FREE[where.type])
    slot, page = slot_bytes(cfg, activations), bytes_of_page(cfg, PAGE, cache_dtype(kv_cache_dtype) or activations)
    need = slot + -(-length // PAGE) * page
    largest = max(0, (memory - slot) // page) * PAGE if page else 0
    return Room(need, memory, largest, cfg.max_position_embeddings)


def too_long(
    length: int, largest: int, need: int | None = None, memory: int | None = None, server: bool = False
) -> str:
    """The line about a context that does not fit."""
    if server:
        return f"--ctx {length}: the server takes at most {largest} tokens; give --ctx {largest}"
    takes = "does not fit"
    if need is not None and memory is not None:
        takes = f"takes {_size(need)} beside the weights and {_size(memory)} may be used"
    lower = f"give --ctx {largest}, or raise --memory" if largest else "raise --memory"
    return f"--ctx {length}: a context of {length} tokens {takes}: the largest that fits is {largest} tokens; {lower}"


def _size(n: int) -> str:
    return f"{n / 2**30:.4g} GiB" if n >= 1 << 30 else f"{n / 2**20:.4g} MiB"
