"""Hugging Face folders in: safetensors with the published `nemotron_h` names.

Tensors are read one at a time from memory-mapped files, so loading needs little more memory than the model.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from nano3.config.errors import UserError
from nano3.kernels.scaled import FLOATS, INT4
from nano3.model.attention import Attention
from nano3.model.hf.checkpoint import BYTES, STORED_INTEGERS, Checkpoint, Source
from nano3.model.hf.config import read_config, read_stage
from nano3.model.hf.mapped import map_integers, read_ahead
from nano3.model.hf.names import is_stacked, named_tensors, published_name
from nano3.model.lm import FLOAT32_SUFFIXES, LM
from nano3.model.shards import local_part


def load(path: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> LM:
    """Model from a Hugging Face folder.

    Matrices stored in FP8 or in integers with their scales stay as they are stored, whatever the folder's lists say;
    scales of keys and values are kept as `k_proj.k_scale` and `v_proj.v_scale`. On a CPU integers are not copied where
    they lie in the files as they are computed with (nano3.model.hf.mapped).

    Args:
        path: folder with config.json and model.safetensors, or shards with an index.
        dtype: dtype of weights and activations; None takes the stored one. Router, A_log, dt_bias and D are float32.
        device: where the weights go.

    Raises:
        UserError: another architecture, or a missing, extra, misshapen or unreadable tensor, or one of a type that is
            not read, by name.
    """
    folder = Path(path)
    cfg = read_config(folder)
    with torch.device("meta"):
        model = LM(cfg)
    with Checkpoint(folder) as checkpoint:
        dtype = dtype or checkpoint.dtype()
        checkpoint.quantize(model)
        wanted = checkpoint.wanted(model)
        mapped = map_integers(model, checkpoint, wanted) if torch.device(device).type == "cpu" else set()
        allocate(model, dtype, device, kept=mapped)
        _copy(checkpoint, [source for source in wanted if source.ours not in mapped], model)
        _check_mapped(model, mapped, folder)
    model.compute_dtype, model.stage = dtype, read_stage(folder)
    _tell_missing_scales(model, folder)
    return model.eval()


def _tell_missing_scales(model: LM, folder: Path) -> None:
    """A line where the folder promises a quantized cache and lacks scales for one."""
    cached = model.cfg.quantization is not None and model.cfg.quantization.kv_cache
    missing = []
    for i, block in enumerate(model.blocks):
        if isinstance(mixer := block.mixer, Attention):
            held = {*mixer.k_proj._buffers, *mixer.v_proj._buffers}
            missing += [] if {"k_scale", "v_scale"} <= held else [i]
    if cached and missing:
        which = f"block{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}"
        print(f"note: {folder}: no scales of keys and values in {which}: an FP8 cache cannot be used", file=sys.stderr)


def stored_dtype(path: str | Path) -> torch.dtype:
    """Type of the weights in a Hugging Face folder. Raises UserError where `load` would not read it."""
    with Checkpoint(Path(path)) as checkpoint:
        return checkpoint.dtype()


def weight_bytes(path: str | Path, dtype: torch.dtype) -> int:
    """Bytes of a folder's weights in memory when they are loaded in `dtype`: quantized ones stay as they are."""
    with Checkpoint(Path(path)) as checkpoint:
        kinds = ((checkpoint.count(name), checkpoint.type(name)) for name in checkpoint.stored)
        return sum(count * BYTES.get(kind, dtype.itemsize) for count, kind in kinds)


def check_stored(model: LM, path: str | Path) -> None:
    """Raise the UserError of `fill` that the headers of the files tell; `model` may be on the meta device."""
    with Checkpoint(Path(path)) as checkpoint:
        checkpoint.wanted(model)


def fill(model: LM, path: str | Path) -> None:
    """Weights of a Hugging Face folder into a model of its architecture, in place.

    Args:
        model: on any device, of any dtype; of sharded parameters (DTensor) each rank reads its slice only.
        path: folder with config.json and model.safetensors, or shards with an index.

    Raises:
        UserError: a missing, extra, misshapen, quantized or unreadable tensor, by name.
    """
    with Checkpoint(Path(path)) as checkpoint:
        _copy(checkpoint, checkpoint.wanted(model), model)


def fill_part(model: LM, path: str | Path, prefix: str) -> None:
    """As `fill`, only the tensors whose names in nano3 begin with `prefix`; the others may be on the meta device.

    The folder is to be checked first, with `check_stored`.
    """
    with Checkpoint(Path(path)) as checkpoint:
        tensors = ((name, tensor) for name, tensor in named_tensors(model) if name.startswith(prefix))
        _copy(checkpoint, [source for name, tensor in tensors for source in checkpoint.sources(name, tensor)], model)


def _copy(checkpoint: Checkpoint, wanted: list[Source], model: LM) -> None:
    """One tensor at a time; experts that live on other ranks are not read."""
    parts = {name: local_part(tensor) for name, tensor in named_tensors(model)}
    for source in wanted:
        local, where = parts[source.ours]
        if source.expert is not None:
            experts = range(where[0].start, where[0].stop)
            if source.expert not in experts:
                continue
            local, where = local[experts.index(source.expert)], where[1:]
        value = checkpoint.read(source.name)
        if source.name.endswith("_scale"):
            value = _scales(value, source, checkpoint.folder)
        elif source.stored == STORED_INTEGERS[INT4]:
            value = value.view(INT4)
        local.copy_(value[where])


def _scales(scale: Tensor, source: Source, folder: Path) -> Tensor:
    """In the shape that the model has them; raises UserError unless all are numbers, and positive where there is one a
    matrix or a row."""
    signed = len(source.shape) == 2  # of groups of 4 bits
    fine = scale.isfinite() if signed else (scale > 0) & scale.isfinite()
    if not fine.all():
        wrong = float(scale[~fine].flatten()[0])
        raise UserError(f"{folder}: {source.name} is {wrong}, which is no scale; copy the folder again")
    if signed and not scale.half().isfinite().all():
        raise UserError(f"{folder}: {source.name} holds {float(scale.abs().amax())}, too large for float16")
    return scale.reshape(source.shape)


def _check_mapped(model: LM, mapped: set[str], folder: Path) -> None:
    """Raise UserError where a scale is no number; reads all that is mapped from disk."""
    tensors = {name: tensor for name, tensor in named_tensors(model) if name in mapped}
    model.mapped_bytes = sum(tensor.nbytes for tensor in tensors.values())
    read_ahead(list(tensors.values()))
    for name, tensor in tensors.items():
        if name.endswith("_scale"):
            for expert, scale in enumerate(tensor) if is_stacked(name) else [(None, tensor)]:
                _scales(scale, Source(published_name(name, expert), name, expert, tuple(scale.shape)), folder)


def allocate(
    model: LM, dtype: torch.dtype, device: torch.device | str, prefix: str = "", kept: Collection[str] = ()
) -> None:
    """Replace the tensors of `model` whose names begin with `prefix` and are not `kept`, as a rule meta tensors, by
    empty real ones; those that stay in float32 or in what they are stored as do so whatever `dtype` is."""
    for name, tensor in list(named_tensors(model)):
        if not name.startswith(prefix) or name in kept:
            continue
        own = torch.float32 if name.endswith(FLOAT32_SUFFIXES) else dtype
        own = tensor.dtype if name.endswith("_scale") else own
        real = torch.empty(tensor.shape, dtype=own if tensor.dtype in FLOATS else tensor.dtype, device=device)
        owner, leaf = name.rsplit(".", 1)
        module = model.get_submodule(owner)
        if leaf in module._parameters:
            module._parameters[leaf] = torch.nn.Parameter(real, requires_grad=tensor.requires_grad)
        else:
            module._buffers[leaf] = real
