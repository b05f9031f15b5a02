"""GGUF files in: what they hold, checked, and their tensors by the names of Hugging Face folders."""

from __future__ import annotations

import math
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nano3.config.errors import UserError
from nano3.model.gguf.header import Entry, read_header
from nano3.model.gguf.names import from_gguf, own_name, own_shape
from nano3.model.gguf.write import require_gguf
from nano3.model.hf.names import published_name
from nano3.reading import is_lfs_pointer

READ = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types whose numbers are weights as they stand -> torch's."""
BLOCKS = "BF16"
"""What a tensor in blocks is said to be stored as: it is unpacked to float32, and computed with as bf16 weights are."""


class GgufFile:
    """One file, memory-mapped. Its tensors are asked for as those of a safetensors file.

    Raises:
        UserError: no GGUF file, one that is cut off or damaged, one of several parts, a tensor of a type that is not
            read, or the package gguf is missing.
    """

    def __init__(self, path: Path) -> None:
        require_gguf()
        self.path = path
        self._data = _map(path)
        header = read_header(path, self._data)
        self.fields = header.fields
        """Metadata by key."""
        if (parts := self.fields.get("split.count", 0)) not in (0, 1):
            raise UserError(f"{path}: is one of {parts} parts: join them with llama-gguf-split --merge")
        self.names: dict[str, str] = {}
        """Published name -> nano3's."""
        self._entries: dict[str, Entry] = {}
        for entry in header.entries:
            ours = own_name(entry.name)
            name = entry.name if ours is None else published_name(ours)
            if name in self._entries:
                raise UserError(f"{path}: holds {entry.name} twice; copy the file again")
            self._size(entry)
            self.names[name], self._entries[name] = ours or entry.name, entry

    def keys(self) -> list[str]:
        """Published names of the tensors."""
        return list(self._entries)

    def get_slice(self, name: str) -> Info:
        """Type and shape of a tensor."""
        entry = self._entries[name]
        return Info(
            _kind(entry).name if _kind(entry).name in READ else BLOCKS, own_shape(self.names[name], entry.shape)
        )

    def get_tensor(self, name: str) -> Tensor:
        """A tensor in nano3's shape; numbers that come in blocks are float32."""
        import gguf

        entry = self._entries[name]
        kind, size = _kind(entry), self._size(entry)
        raw = np.frombuffer(self._data, np.uint8, size, entry.start)
        if kind.name in READ:
            value = torch.from_numpy(raw.copy()).view(READ[kind.name])
        else:
            value = torch.from_numpy(gguf.quants.dequantize(raw, kind))
        return from_gguf(self.names[name], value.reshape(entry.shape))

    def _size(self, entry: Entry) -> int:
        """Bytes of a tensor; raises UserError where they cannot be read."""
        import gguf

        kind = _kind(entry)
        if kind is None or (kind.name not in READ and kind not in gguf.quants._type_traits):
            found = f"type {entry.code}" if kind is None else f"type {kind.name}"
            raise UserError(f"{self.path}: {entry.name} is of {found}, which nano3 cannot read")
        block, size = gguf.GGML_QUANT_SIZES[kind]
        row = entry.shape[-1] if entry.shape else 1
        if row % block:
            raise UserError(f"{self.path}: {entry.name} has rows of {row}, no multiple of {block}; copy the file again")
        total = math.prod(entry.shape) // block * size
        if entry.start + total > len(self._data):
            raise UserError(f"{self.path}: is cut off: {entry.name} ends at byte {entry.start + total:,} of "
                            f"{len(self._data):,}; copy the file again")  # fmt: skip
        return total

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._entries = {}


def _kind(entry: Entry) -> Any:
    """gguf's type of a tensor; None for one that it does not know."""
    import gguf

    try:
        return gguf.GGMLQuantizationType(entry.code)
    except ValueError:
        return None


class Info:
    """What a tensor is, as safetensors tells it."""

    def __init__(self, dtype: str, shape: tuple[int, ...]) -> None:
        self._dtype, self._shape = dtype, shape

    def get_dtype(self) -> str:
        """Type that its numbers are read as."""
        return self._dtype

    def get_shape(self) -> list[int]:
        """Sizes."""
        return list(self._shape)


def _map(path: Path) -> mmap:
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a GGUF file")
    try:
        with path.open("rb") as file:
            if is_lfs_pointer(file.read(200)):
                raise UserError(f"{path}: a Git LFS pointer, not the weights: git lfs pull in {path.parent}")
            return mmap(file.fileno(), 0, access=ACCESS_READ)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: is empty; copy the file again") from None
