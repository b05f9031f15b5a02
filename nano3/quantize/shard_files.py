"""safetensors files whose layout is fixed before their numbers are known, so that these can come one at a time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nano3.config.errors import UserError
from nano3.model.hf.write import StoredTensor

TYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float8_e4m3fn: "F8_E4M3"}
TYPE_NAMES |= {torch.int8: "I8", torch.int32: "I32", torch.int64: "I64"}
ALIGNMENT = 64
"""Bytes: a line of the processor's caches, so that matrices can be computed with where they lie in the mapped file."""


@dataclass(frozen=True)
class _Place:
    file: str
    start: int
    tensor: StoredTensor


class ShardFiles:
    """The files of a folder, written in any order of tensors; what is written twice is replaced."""

    def __init__(self, folder: Path, files: Mapping[str, Sequence[StoredTensor]]) -> None:
        """Lay them out; nothing is written yet."""
        self.folder = folder
        self._headers: dict[str, bytes] = {}
        self._sizes: dict[str, int] = {}
        self._places: dict[str, _Place] = {}
        for file, tensors in files.items():
            self._lay_out(file, tensors)

    @property
    def total_bytes(self) -> int:
        """Of all files."""
        return sum(self._sizes.values())

    @property
    def names(self) -> list[str]:
        """Published names of all tensors."""
        return list(self._places)

    def place(self, name: str) -> StoredTensor:
        """The tensor of this name, as it is to be stored."""
        return self._places[name].tensor

    def are_whole(self) -> bool:
        """Whether all files are there in their full size."""
        return all(
            (self.folder / file).is_file() and (self.folder / file).stat().st_size == size
            for file, size in self._sizes.items()
        )

    def create(self) -> None:
        """Make the files, their headers written and room for all numbers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for file, header in self._headers.items():
            with (self.folder / file).open("wb") as stream:
                stream.write(header)
                stream.truncate(self._sizes[file])

    def write(self, name: str, value: Tensor) -> None:
        """The numbers of one tensor.

        Raises:
            ValueError: they are of another shape than was laid out.
        """
        place = self._places[name]
        if tuple(value.shape) != place.tensor.shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; {place.tensor.shape} was laid out")
        data = value.detach().to(device="cpu", dtype=place.tensor.dtype).contiguous().view(-1).view(torch.uint8)
        with (self.folder / place.file).open("r+b") as stream:
            stream.seek(place.start)
            stream.write(data.numpy().data)

    def sync(self) -> None:
        """Flush what was written to disk."""
        for file in self._sizes:
            with (self.folder / file).open("r+b") as stream:
                os.fsync(stream.fileno())

    def _lay_out(self, file: str, tensors: Sequence[StoredTensor]) -> None:
        # Whole lines first, then wide numbers first, so that each begins at a multiple of its size.
        ordered = sorted(tensors, key=lambda tensor: (tensor.nbytes % ALIGNMENT > 0, -tensor.dtype.itemsize))
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end, starts = 0, {}
        for tensor in ordered:
            if tensor.dtype not in TYPE_NAMES:
                raise UserError(f"{tensor.name}: {tensor.dtype} cannot be written")
            starts[tensor.name] = end
            offsets = [end, end := end + tensor.nbytes]
            entries[tensor.name] = {
                "dtype": TYPE_NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": offsets,
            }
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        header = len(text).to_bytes(8, "little") + text
        self._headers[file], self._sizes[file] = header, len(header) + end
        for tensor in ordered:
            self._places[tensor.name] = _Place(file, len(header) + starts[tensor.name], tensor)


def check_disk(folder: Path, need: int, or_else: str = "") -> None:
    """
    Raises:
        UserError: less than `need` bytes are free where `folder` is, or is to be.
    """
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if need > free:
        raise UserError(f"{folder}: needs {need / 1e9:.3g} GB of disk, {free / 1e9:.3g} GB are free: give --out on "
                        f"another disk{or_else}")  # fmt: skip
