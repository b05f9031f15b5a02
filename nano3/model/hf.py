"""Hugging Face folders in and out: config.json and safetensors with the published `nemotron_h` names.

Tensors are read one at a time from memory-mapped files, so loading needs little more memory than the model.
Two namings are read: the published one (`backbone.`, one pair of matrices an expert) and that of transformers 5 in
memory (`model.`, the experts of a block in one tensor). The published one is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nano3.config.errors import UserError
from nano3.config.model import ModelConfig
from nano3.files import atomic_folder
from nano3.model.config import read_config, to_hf
from nano3.model.lm import FLOAT32_SUFFIXES, LM

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

__all__ = ["load", "read_config", "save"]


def load(path: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> LM:
    """Model from a Hugging Face folder.

    Args:
        path: folder with config.json and model.safetensors, or shards with an index.
        dtype: dtype of weights and activations; None takes the stored one. Router, A_log, dt_bias and D are float32.
        device: where the weights go.

    Raises:
        UserError: another architecture, or a missing, extra, misshapen or unreadable tensor, by name.
    """
    folder = Path(path)
    cfg = read_config(folder)
    with _Checkpoint(folder) as checkpoint:
        dtype = dtype or checkpoint.dtype("lm_head.weight")
        with torch.device("meta"):
            model = LM(cfg)
        wanted = [t for name, tensor in named_tensors(model) for t in checkpoint.sources(name, tensor)]
        checkpoint.check(wanted)
        filled = _allocate(model, dtype, device)
        for source in wanted:
            target = filled[source.ours] if source.expert is None else filled[source.ours][source.expert]
            target.copy_(checkpoint.read(source.name).view(target.shape))
    model.compute_dtype = dtype
    return model.eval()


def save(
    model: LM,
    folder: str | Path,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
    extra: Callable[[Path], None] | None = None,
) -> None:
    """Write config.json, generation_config.json and safetensors; the folder appears whole or not at all.

    Args:
        model: its tensors may be sharded over ranks (DTensor); then every rank must call, and rank 0 writes.
        folder: replaced when it exists.
        dtype: dtype on disk; None keeps that of the parameters. Router, A_log, dt_bias and D keep float32.
        max_shard_bytes: largest safetensors file; more are written as shards with an index.
        extra: writes what else belongs in the folder, such as the tokenizer, before it appears.
    """
    shards = _plan_shards(model, dtype, max_shard_bytes)
    if not _is_writer():
        for shard in shards:
            for item in shard:
                item.tensor()
        return
    with atomic_folder(Path(folder)) as temporary:
        _write_shards(shards, temporary)
        stored = dtype or model.lm_head.weight.dtype
        _write_json(temporary / "config.json", to_hf(model.cfg, str(stored).removeprefix("torch.")))
        _write_json(temporary / "generation_config.json", _generation_config(model.cfg))
        if extra is not None:
            extra(temporary)


def named_tensors(model: LM) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers that a checkpoint holds, by nano3's names."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def published_name(name: str, expert: int | None = None) -> str:
    """nano3's name of a tensor -> the published name; `expert` picks one expert of a stacked tensor."""
    if name.startswith("blocks."):
        name = "backbone.layers." + name.removeprefix("blocks.")
    elif not name.startswith("lm_head."):
        name = "backbone." + name
    if expert is None:
        return name
    stem, projection = name.rsplit(".", 1)
    return f"{stem}.{expert}.{projection}.weight"


def _is_stacked(name: str) -> bool:
    return name.endswith((".experts.up_proj", ".experts.down_proj"))


@dataclass(frozen=True)
class _Source:
    """One tensor of a checkpoint, and where it goes."""

    name: str
    ours: str
    expert: int | None
    shape: tuple[int, ...]


class _Checkpoint:
    """The safetensors files of one folder, opened when first needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = _locate(folder)
        self.handles: dict[str, Any] = {}
        # The published name of each stored tensor, whatever its prefix -> the stored name.
        self.stored = {"backbone." + n.removeprefix("model.") if n.startswith("model.") else n: n for n in self.files}

    def __enter__(self) -> _Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles.values():
            handle.__exit__(None, None, None)

    def sources(self, ours: str, tensor: Tensor) -> list[_Source]:
        """Where the checkpoint keeps nano3's tensor `ours`: one place, or one an expert."""
        name = published_name(ours)
        if not _is_stacked(ours) or name in self.stored:
            return [_Source(name, ours, None, tuple(tensor.shape))]
        return [_Source(published_name(ours, e), ours, e, tuple(tensor.shape[1:])) for e in range(tensor.shape[0])]

    def check(self, wanted: list[_Source]) -> None:
        """Raise UserError unless the stored tensors are exactly the wanted ones."""
        missing = [s.name for s in wanted if s.name not in self.stored]
        if missing:
            raise UserError(f"{self.folder}: {_count(missing)} missing, first {missing[0]}")
        extra = sorted(set(self.stored) - {s.name for s in wanted})
        if extra:
            raise UserError(f"{self.folder}: {_count(extra)} that config.json has no place for, first {extra[0]}")
        for source in wanted:
            shape = tuple(self._slice(source.name).get_shape())
            if shape != source.shape:
                raise UserError(f"{self.folder}: {source.name} has shape {shape}, config.json makes it {source.shape}")

    def dtype(self, name: str) -> torch.dtype:
        """Stored dtype of a tensor."""
        if name not in self.stored:
            raise UserError(f"{self.folder}: tensor {name} is missing")
        found = {"F32": torch.float32, "BF16": torch.bfloat16}.get(self._slice(name).get_dtype())
        if found is None:
            raise UserError(
                f"{self.folder}: {name} is stored as {self._slice(name).get_dtype()}; nano3 reads F32 and BF16"
            )
        return found

    def read(self, name: str) -> Tensor:
        """One tensor, memory-mapped."""
        return self._open(name).get_tensor(self.stored[name])

    def _slice(self, name: str) -> Any:
        return self._open(name).get_slice(self.stored[name])

    def _open(self, name: str) -> Any:
        file = self.files[self.stored[name]]
        if file not in self.handles:
            try:
                self.handles[file] = safe_open(self.folder / file, framework="pt").__enter__()
            except (SafetensorError, OSError) as error:
                raise UserError(f"{self.folder / file}: cannot be read ({error}); copy the file again") from None
            held = set(self.handles[file].keys())
            lost = sorted(n for n, f in self.files.items() if f == file and n not in held)
            if lost:
                raise UserError(f"{self.folder / file}: the index promises {lost[0]}, which is not in the file")
        return self.handles[file]


def _locate(folder: Path) -> dict[str, str]:
    """Stored tensor name -> file name."""
    if (folder / INDEX).is_file():
        try:
            return dict(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{folder / INDEX}: not a safetensors index; copy the file again") from None
    if not (folder / SINGLE).is_file():
        raise UserError(f"{folder}: neither {SINGLE} nor {INDEX}; nano3 reads weights from safetensors only")
    try:
        with safe_open(folder / SINGLE, framework="pt") as handle:
            return dict.fromkeys(handle.keys(), SINGLE)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / SINGLE}: cannot be read ({error}); copy the file again") from None


def _count(names: list[str]) -> str:
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''}"


def _allocate(model: LM, dtype: torch.dtype, device: torch.device | str) -> dict[str, Tensor]:
    """Replace the meta tensors of `model` by empty real ones; by nano3's name."""
    filled = {}
    for name, tensor in list(named_tensors(model)):
        kept = torch.float32 if name.endswith(FLOAT32_SUFFIXES) else dtype
        empty = torch.empty(tensor.shape, dtype=kept, device=device)
        owner, leaf = name.rsplit(".", 1)
        module = model.get_submodule(owner)
        if leaf in module._parameters:
            module._parameters[leaf] = torch.nn.Parameter(empty)
        else:
            module._buffers[leaf] = empty
        filled[name] = empty
    return filled


@dataclass(frozen=True)
class _Item:
    """One tensor to write."""

    name: str
    value: Tensor
    expert: int | None
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        count = self.value.numel() if self.expert is None else self.value[0].numel()
        return count * self.dtype.itemsize

    def tensor(self) -> Tensor:
        """The values, gathered from all ranks when sharded."""
        value = self.value.detach() if self.expert is None else self.value.detach()[self.expert]
        if hasattr(value, "full_tensor"):
            value = value.full_tensor()  # pyright: ignore[reportAttributeAccessIssue]
        return value.to(device="cpu", dtype=self.dtype).contiguous()


def _plan_shards(model: LM, dtype: torch.dtype | None, max_shard_bytes: int) -> list[list[_Item]]:
    shards: list[list[_Item]] = [[]]
    room = max_shard_bytes
    for name, value in named_tensors(model):
        kept = value.dtype if dtype is None or name.endswith(FLOAT32_SUFFIXES) else dtype
        experts = range(value.shape[0]) if _is_stacked(name) else [None]
        for expert in experts:
            item = _Item(published_name(name, expert), value, expert, kept)
            if item.nbytes > room and shards[-1]:
                shards.append([])
                room = max_shard_bytes
            shards[-1].append(item)
            room -= item.nbytes
    return shards


def _write_shards(shards: list[list[_Item]], folder: Path) -> None:
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = [SINGLE]
    weight_map, total = {}, 0
    for name, shard in zip(names, shards, strict=True):
        save_file({item.name: item.tensor() for item in shard}, folder / name, metadata={"format": "pt"})
        weight_map |= {item.name: name for item in shard}
        total += sum(item.nbytes for item in shard)
    if len(shards) > 1:
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _generation_config(cfg: ModelConfig) -> dict[str, Any]:
    return {"bos_token_id": cfg.bos_id, "eos_token_id": cfg.eos_id, "pad_token_id": cfg.pad_id, "do_sample": True}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _is_writer() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
