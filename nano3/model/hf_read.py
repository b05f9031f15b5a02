"""Hugging Face folders in: safetensors with the published `nemotron_h` names.

Tensors are read one at a time from memory-mapped files, so loading needs little more memory than the model.
Two namings are read: the published one (`backbone.`, one pair of matrices an expert) and that of transformers 5 in
memory (`model.`, the experts of a block in one tensor).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nano3.config.errors import UserError
from nano3.model.config import read_config, read_stage
from nano3.model.hf_names import INDEX, SINGLE, is_stacked, named_tensors, published_name
from nano3.model.lm import FLOAT32_SUFFIXES, LM
from nano3.model.shards import local_part


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
    with torch.device("meta"):
        model = LM(cfg)
    with _Checkpoint(folder) as checkpoint:
        dtype = dtype or checkpoint.dtype("lm_head.weight")
        wanted = checkpoint.wanted(model)
        allocate(model, dtype, device)
        _copy(checkpoint, wanted, model)
    model.compute_dtype, model.stage = dtype, read_stage(folder)
    return model.eval()


def stored_dtype(path: str | Path) -> torch.dtype:
    """Type of the weights in a Hugging Face folder. Raises UserError where `load` would not read it."""
    with _Checkpoint(Path(path)) as checkpoint:
        return checkpoint.dtype("lm_head.weight")


def check_stored(model: LM, path: str | Path) -> None:
    """Raise the UserError of `fill` that the headers of the files tell; `model` may be on the meta device."""
    with _Checkpoint(Path(path)) as checkpoint:
        checkpoint.wanted(model)


def fill(model: LM, path: str | Path) -> None:
    """Weights of a Hugging Face folder into a model of its architecture, in place.

    Args:
        model: on any device, of any dtype; of sharded parameters (DTensor) each rank reads its slice only.
        path: folder with config.json and model.safetensors, or shards with an index.

    Raises:
        UserError: a missing, extra, misshapen or unreadable tensor, by name.
    """
    with _Checkpoint(Path(path)) as checkpoint:
        _copy(checkpoint, checkpoint.wanted(model), model)


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
        if not is_stacked(ours) or name in self.stored:
            return [_Source(name, ours, None, tuple(tensor.shape))]
        return [_Source(published_name(ours, e), ours, e, tuple(tensor.shape[1:])) for e in range(tensor.shape[0])]

    def wanted(self, model: LM) -> list[_Source]:
        """All that goes into `model`; raises UserError unless the stored tensors are exactly those."""
        wanted = [source for name, tensor in named_tensors(model) for source in self.sources(name, tensor)]
        self._check(wanted)
        return wanted

    def _check(self, wanted: list[_Source]) -> None:
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


def _copy(checkpoint: _Checkpoint, wanted: list[_Source], model: LM) -> None:
    """One tensor at a time; experts that live on other ranks are not read."""
    parts = {name: local_part(tensor) for name, tensor in named_tensors(model)}
    for source in wanted:
        local, where = parts[source.ours]
        if source.expert is not None:
            experts = range(where[0].start, where[0].stop)
            if source.expert not in experts:
                continue
            local, where = local[experts.index(source.expert)], where[1:]
        local.copy_(checkpoint.read(source.name)[where])


def allocate(model: LM, dtype: torch.dtype, device: torch.device | str) -> None:
    """Replace the meta tensors of `model` by empty real ones, those that stay in float32 whatever `dtype` is too."""
    for name, tensor in list(named_tensors(model)):
        kept = torch.float32 if name.endswith(FLOAT32_SUFFIXES) else dtype
        empty = torch.empty(tensor.shape, dtype=kept, device=device)
        owner, leaf = name.rsplit(".", 1)
        module = model.get_submodule(owner)
        if leaf in module._parameters:
            module._parameters[leaf] = torch.nn.Parameter(empty)
        else:
            module._buffers[leaf] = empty
