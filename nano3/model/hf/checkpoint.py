"""The tensors of a Hugging Face folder as they are stored, by their published names, and where each goes in a model.

Two namings are read: the published one (`backbone.`, one pair of matrices an expert) and that of transformers 5 in
memory (`model.`, the experts of a block in one tensor).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nano3.config.errors import UserError
from nano3.kernels import Scaled
from nano3.kernels.scaled import E4M3, INT4, INT8
from nano3.model.attention import Attention
from nano3.model.hf.files import locate, open_weights
from nano3.model.hf.integers import PACKED, SHAPE, empty
from nano3.model.hf.names import is_stacked, named_tensors, published_name
from nano3.model.layers import Linear
from nano3.model.lm import LM
from nano3.model.moe import Experts

READ_AS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float32}
"""Stored type -> the type that holds its numbers exactly and that nano3 computes with."""
QUANTIZED = "F8_E4M3"
"""Stored type of matrices whose numbers are these times a scale beside them."""
OF_ATTENTION = re.compile(r"\.mixer\.([kv])_scale$")
"""Scale of keys or values where compressed-tensors' own tools put it, beside the projections."""
STORED_INTEGERS = {INT8: "I8", INT4: "I32"}
"""Type of a matrix of integers -> how a folder stores it."""
BYTES = {QUANTIZED: 1, "I8": 1, "I32": 4, "I64": 8}
"""Of one number of tensors that stay as they are stored."""


@dataclass(frozen=True)
class Source:
    """One tensor of a checkpoint, and where it goes."""

    name: str
    ours: str
    expert: int | None
    shape: tuple[int, ...]
    stored: str = ""
    """Type that it must be stored as; empty: any that is read as it stands."""


class Checkpoint:
    """The safetensors files of one folder, opened when first needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = locate(folder)
        self.handles: dict[str, Any] = {}
        self.stored: dict[str, str] = {}
        """The published name of each stored tensor, whatever its prefix -> the stored name."""
        for name in self.files:
            published = "backbone." + name.removeprefix("model.") if name.startswith("model.") else name
            published = OF_ATTENTION.sub(r".mixer.\1_proj.\1_scale", published)
            if (other := self.stored.setdefault(published, name)) != name:
                raise UserError(
                    f"{folder}: holds both {other} and {name}; delete one of them, or copy the folder again"
                )

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files, whose pages count as this process's memory while they are mapped; the next read opens them
        again."""
        for handle in self.handles.values():
            handle.__exit__(None, None, None)
        self.handles.clear()

    def sources(self, ours: str, tensor: Tensor) -> list[Source]:
        """Where the checkpoint keeps nano3's tensor `ours`: one place, or one an expert."""
        name, kind = published_name(ours), QUANTIZED if tensor.dtype == E4M3 else STORED_INTEGERS.get(tensor.dtype, "")
        if not is_stacked(ours) or name in self.stored:
            return [_source(name, ours, None, tuple(tensor.shape), kind)]
        shape, experts = tuple(tensor.shape[1:]), range(tensor.shape[0])
        return [_source(published_name(ours, e), ours, e, shape, kind) for e in experts]

    def wanted(self, model: LM) -> list[Source]:
        """All that goes into `model`; raises UserError unless the stored tensors are exactly those, or those of the
        whole that it is a part of."""
        wanted, others = self._all_sources(model), set()
        if model.is_part:
            with torch.device("meta"):
                others = {source.name for source in self._all_sources(LM(model.cfg))}
        self._check(wanted, others)
        return wanted

    def _all_sources(self, model: LM) -> list[Source]:
        return [source for name, tensor in named_tensors(model) for source in self.sources(name, tensor)]

    def quantize(self, model: LM) -> None:
        """Have the modules of `model`, on the meta device, hold scaled weights where the folder has these."""
        for name, module in model.named_modules():
            own = published_name(name)
            if isinstance(module, Linear) and (found := self.scaled(own, module.weight)) is not None:
                module.use_scaled(found)
            if isinstance(module, Experts):
                self._quantize_experts(module, own)
            for letter in "kv" if isinstance(module, Attention) else ():
                if f"{own}.{letter}_proj.{letter}_scale" in self.stored:
                    scale = torch.empty((), device="meta")
                    module.get_submodule(f"{letter}_proj").register_buffer(f"{letter}_scale", scale)

    def _quantize_experts(self, experts: Experts, own: str) -> None:
        for projection in ("up_proj", "down_proj"):
            if (found := self.scaled(f"{own}.0.{projection}", experts.get_parameter(projection))) is not None:
                experts.use_scaled(projection, found)

    def scaled(self, own: str, weight: Tensor) -> Scaled | None:
        """What takes the place of a weight, without numbers; None where the folder's `own` module is not quantized."""
        if self.is_scaled(f"{own}.weight"):
            return empty_scaled(weight, f"{own}.input_scale" in self.stored)
        packed = f"{own}.{PACKED}" in self.stored
        if not packed and not (f"{own}.weight_scale" in self.stored and self._has(f"{own}.weight", "I8")):
            return None
        try:
            return empty(weight, INT4 if packed else INT8)
        except ValueError as error:
            raise UserError(f"{self.folder}: {own}: {error}, in which nano3 computes with 4 bits") from error

    def is_scaled(self, name: str) -> bool:
        """Whether a weight is stored as FP8 numbers with a scale beside them."""
        return f"{name}_scale" in self.stored and self._has(name, QUANTIZED)

    def _has(self, name: str, kind: str) -> bool:
        return name in self.stored and self.type(name) == kind

    def _check(self, wanted: list[Source], others: set[str]) -> None:
        for source in wanted:
            self._check_type(source)
        missing = [s.name for s in wanted if s.name not in self.stored]
        if missing and missing[0].removesuffix("weight") + PACKED in self.stored:
            raise UserError(f"{self.folder}: {missing[0]} is stored as integers of 4 bits: it is quantized, and wanted "
                            "here as it was before; give the unquantized folder")  # fmt: skip
        if missing:
            raise UserError(f"{self.folder}: {_count(missing)} missing, first {missing[0]}")
        names = others | {s.name for s in wanted}
        known = {n for n in self.stored if n.endswith(SHAPE) and n.removesuffix(SHAPE) + PACKED in names}
        extra = sorted(set(self.stored) - names - known)
        if extra:
            raise UserError(f"{self.folder}: {_count(extra)} that config.json has no place for, first {extra[0]}")
        for source in wanted:
            shape = tuple(self._slice(source.name).get_shape())
            if shape != source.shape and not (source.name.endswith("_scale") and shape in ((1,), (*source.shape, 1))):
                raise UserError(f"{self.folder}: {source.name} has shape {shape}, config.json makes it {source.shape}")

    def _check_type(self, source: Source) -> None:
        """Stored numbers are weights as they stand, or have a scale; anything else would be read as noise."""
        if source.name not in self.stored:
            return
        name, kind = self.stored[source.name], self.type(source.name)
        if kind == source.stored if source.stored else kind in READ_AS:
            return
        if source.stored:
            why = f", others of its block as {source.stored}; copy the folder again"
        elif f"{source.name}_scale" in self.stored and kind in (QUANTIZED, STORED_INTEGERS[INT8]):
            why = f" with {name}_scale: it is quantized, and wanted here as it was before; give the unquantized folder"
        elif kind == QUANTIZED:
            why = f" without {name}_scale, so its numbers mean nothing; copy the folder again, or give the unquantized"
        else:
            why = f"; nano3 reads {', '.join(READ_AS)}, and {QUANTIZED} with a scale: give the unquantized folder"
        raise UserError(f"{self.folder}: {name} is stored as {kind}{why}")

    def dtype(self) -> torch.dtype:
        """Type to compute with: that of the output projection, or where it is quantized of the embeddings."""
        quantized = "lm_head.weight_scale" in self.stored
        name = "backbone.embeddings.weight" if quantized else "lm_head.weight"
        if name not in self.stored:
            raise UserError(f"{self.folder}: tensor {name} is missing")
        self._check_type(Source(name, "", None, ()))
        return READ_AS[self.type(name)]

    def type(self, name: str) -> str:
        """Stored type of a tensor."""
        return self._slice(name).get_dtype()

    def count(self, name: str) -> int:
        """Numbers in a tensor."""
        return math.prod(self._slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        """One tensor, memory-mapped."""
        return self._open(name).get_tensor(self.stored[name])

    def _slice(self, name: str) -> Any:
        return self._open(name).get_slice(self.stored[name])

    def _open(self, name: str) -> Any:
        file = self.files[self.stored[name]]
        if file not in self.handles:
            self.handles[file] = open_weights(self.folder / file)
            held = set(self.handles[file].keys())
            lost = sorted(n for n, f in self.files.items() if f == file and n not in held)
            if lost:
                raise UserError(f"{self.folder / file}: the index promises {lost[0]}, which is not in the file")
        return self.handles[file]


def _count(names: list[str]) -> str:
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''}"


def _source(name: str, ours: str, expert: int | None, shape: tuple[int, ...], kind: str) -> Source:
    if kind == STORED_INTEGERS[INT4]:
        name, shape = name.removesuffix("weight") + PACKED, (*shape[:-1], shape[-1] // 4)
    return Source(name, ours, expert, shape, kind)


def empty_scaled(weight: Tensor, inputs: bool) -> Scaled:
    """A scaled weight in the place of this one, on its device, without numbers."""
    scale = torch.empty((), device=weight.device)
    return Scaled(torch.empty(weight.shape, dtype=E4M3, device=weight.device), scale, scale if inputs else None)
