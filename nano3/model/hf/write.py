"""Hugging Face folders out: config.json and safetensors with the published `nemotron_h` names.

The published naming is written: `backbone.`, one pair of matrices an expert.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from fnmatch import fnmatch
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from nano3.config.errors import UserError
from nano3.config.model import ModelConfig
from nano3.files import atomic_folder, usual_mode
from nano3.kernels.scaled import FLOATS, INTEGERS
from nano3.model.hf.config import STAGE_KEY, to_hf
from nano3.model.hf.integers import stored_names, stored_tensors
from nano3.model.hf.layout import INDEX, SINGLE
from nano3.model.hf.module_quantization import quantization_keys
from nano3.model.hf.names import is_stacked, named_tensors, published_name
from nano3.model.hf.parts import PartsWriter, StoredTensor, tensors_of_all
from nano3.model.hf.quantization import FILE as QUANTIZATION
from nano3.model.lm import FLOAT32_SUFFIXES, LM
from nano3.model.lora.merge import unmerged
from nano3.model.shards import is_sharded

SCALES = ("_scale",)
"""Ends of the names that quantized weights, keys and values bring along."""
FOR_SERVERS = ".nano3-for-servers"
"""Empty file in a folder of weights that a run wrote for servers, and may replace and remove."""
# What a Hugging Face folder of a model holds; a folder with anything else is not replaced.
EXPECTED_NAMES = (
    "config.json",
    "generation_config.json",
    "hf_quant_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "README.md",
    "LICENSE*",
    ".gitattributes",
    FOR_SERVERS,
)
REWRITTEN = ("config.json", "*.safetensors", "*.safetensors.index.json", "hf_quant_config.json")
OF_THE_MODEL = ("README.md", "LICENSE*", FOR_SERVERS)
"""Files that are about one model alone, and not about one that is made from it."""


def save(
    model: LM,
    folder: str | Path,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
    extra: Callable[[Path], None] | None = None,
) -> None:
    """Write config.json, generation_config.json and safetensors; the folder appears whole or not at all.

    Args:
        model: its tensors may be sharded over ranks (DTensor).
        folder: replaced when it holds nothing but a model.
        dtype: dtype on disk; None keeps that of the parameters. Router, A_log, dt_bias and D keep float32, quantized
            weights theirs.
        max_shard_bytes: largest safetensors file; more are written as shards with an index.
        extra: writes what else belongs in the folder, such as the tokenizer, before it appears.

    Under torch.distributed every rank must call; rank 0 writes, and a failure of it is raised on every rank. Of what is
    sharded it gets one part after the other (nano3.model.hf.parts), and so needs no room for a file.

    Raises:
        UserError: `folder` is a file or holds anything that does not belong to a model, or the model holds weights that
            its architecture does not (of adapters that are not merged).
        OSError: the disk is full or not writable.
    """
    folder = Path(folder)
    _on_writer(lambda: _check_known(model))
    files = plan_files(model, dtype, max_shard_bytes)
    shared = model.is_part or any(is_sharded(value) for _, value in named_tensors(model))
    parts = PartsWriter(model) if shared else None
    with ExitStack() as stack:
        temporary = _on_writer(lambda: _begin(folder, stack))
        for file, items in files.items():
            path: Any = temporary and temporary / file
            if parts is not None:
                error = parts.write(path, items)
                _on_writer(lambda e=error: _raise(e))
            else:
                _on_writer(lambda p=path, i=items: _write_tensors(p, i))
        _on_writer(lambda: write_rest(temporary, files, model, dtype, extra))
        _on_writer(stack.close)


def _check_known(model: LM) -> None:
    with torch.device("meta"):
        known = set(LM(model.cfg).state_dict())
    foreign = [name for name, _ in named_tensors(model) if name not in known and not name.endswith(SCALES)]
    foreign += unmerged(model)
    if foreign:
        raise UserError(f"the model has {foreign[0]}, which a nemotron_h folder has no place for: merge adapters first")


def _begin(folder: Path, stack: ExitStack) -> Path:
    check_replaceable(folder)
    return stack.enter_context(atomic_folder(folder))


def check_replaceable(folder: Path) -> None:
    """Raise UserError for a folder that holds anything but a model, which a new one would delete."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file; give a folder to save the model in")
    names = sorted(entry.name for entry in folder.iterdir())
    foreign = [n for n in names if not any(fnmatch(n, expected) for expected in EXPECTED_NAMES)]
    foreign.sort(key=lambda name: name.startswith("."))  # a hidden file says least of what the folder is
    if foreign:
        raise UserError(f"{folder}: holds {foreign[0]}, which saving a model here would delete; give another folder")
    if names and "config.json" not in names:
        raise UserError(f"{folder}: holds {names[0]} but no model that may be replaced; give another folder")


def _on_writer(action: Callable[[], Any]) -> Any:
    """Do something on rank 0 and return what it returns (None elsewhere); its failure is raised on every rank."""
    if not dist.is_initialized():
        return action()
    result, error = None, None
    if _writes():
        try:
            result = action()
        except Exception as failure:
            error = failure
    told = [None if error is None else f"rank 0 could not save the model: {error}"]
    dist.broadcast_object_list(told, src=0)
    if error is not None:
        raise error
    if told[0] is not None:
        raise UserError(told[0])
    return result


def _writes() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def plan_files(model: LM, dtype: torch.dtype | None, max_shard_bytes: int) -> dict[str, list[StoredTensor]]:
    """File name -> what it holds; the same on every rank, without communication unless ranks hold different blocks."""
    shards: list[list[StoredTensor]] = [[]]
    room = max_shard_bytes
    for items in _together(_items(model, dtype), max_shard_bytes):
        size = sum(item.nbytes for item in items)
        if size > room and shards[-1]:
            shards.append([])
            room = max_shard_bytes
        shards[-1] += items
        room -= size
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards)}


def _together(items: Iterable[StoredTensor], most: int) -> Iterable[list[StoredTensor]]:
    """Items one by one, but all experts' integers of a projection at once where a file can hold them: a mapped file
    then has them as they are computed with (nano3.model.hf.mapped)."""
    for _, group in groupby(items, key=lambda item: item.ours):
        parts = list(group)
        whole = parts[0].dtype in INTEGERS and sum(part.nbytes for part in parts) <= most
        yield from [parts] if whole else ([part] for part in parts)


def _items(model: LM, dtype: torch.dtype | None) -> Iterable[StoredTensor]:
    for name, value in tensors_of_all(model):
        kept = value.dtype
        if dtype is not None and kept in FLOATS and not name.endswith(FLOAT32_SUFFIXES):
            kept = dtype
        for expert in range(value.shape[0]) if is_stacked(name) else [None]:
            yield StoredTensor(published_name(name, expert), name, value, expert, kept)


def _write_tensors(path: Path, items: list[StoredTensor]) -> None:
    """A file of tensors that this process has whole."""
    tensors: dict[str, Tensor] = {}
    for item in items:
        value = item.value.detach() if item.expert is None else item.value.detach()[item.expert]
        tensors |= stored_tensors(item.name, value.to(device="cpu", dtype=item.dtype).contiguous())
    with usual_mode(path):
        save_file(tensors, path, metadata={"format": "pt"})


def _raise(error: OSError | None) -> None:
    if error is not None:
        raise error


def write_rest(
    folder: Path,
    files: dict[str, list[StoredTensor]],
    model: LM,
    dtype: torch.dtype | None,
    extra: Callable[[Path], None] | None,
) -> None:
    """The JSON files and what the caller adds."""
    if len(files) > 1:
        total = sum(item.nbytes for items in files.values() for item in items)
        names = ((name, file) for file, items in files.items() for i in items for name in stored_names(i.name, i.dtype))
        weight_map = dict(names)
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    stored = dtype or model.dtype
    keys = to_hf(model.cfg, str(stored).removeprefix("torch.")) | ({STAGE_KEY: model.stage} if model.stage else {})
    if (quantized := quantization_keys(model)) is not None:
        keys["quantization_config"] = quantized[0]
        if quantized[1] is not None:
            _write_json(folder / QUANTIZATION, quantized[1])
    _write_json(folder / "config.json", keys)
    write_generation_config(folder, model.cfg)
    if extra is not None:
        extra(folder)


def write_generation_config(folder: Path, cfg: ModelConfig) -> None:
    """Write generation_config.json, by which other programs end a text."""
    values = {"bos_token_id": cfg.bos_id, "eos_token_id": cfg.eos_id, "pad_token_id": cfg.pad_id, "do_sample": True}
    _write_json(folder / "generation_config.json", values)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def copy_companions(source: Path, folder: Path) -> None:
    """Tokenizer, chat template and generation settings of one model's folder into that of a model made from it."""
    for file in source.iterdir():
        if matches(file, EXPECTED_NAMES) and not matches(file, REWRITTEN + OF_THE_MODEL):
            shutil.copy(file, folder / file.name)


def matches(file: Path, patterns: tuple[str, ...]) -> bool:
    """Whether it is a file with a name of one of these kinds."""
    return file.is_file() and any(fnmatch(file.name, pattern) for pattern in patterns)
