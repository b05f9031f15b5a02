"""Integer weights that are computed with where they lie in the mapped files of a folder.

Memory then holds a model once, as pages of the files, which the system may drop and read again; nothing is copied.
`nano3 quantize` lays its folders out for this: a projection's experts one behind the other. What lies otherwise is
copied when it is loaded.
"""

from __future__ import annotations

import ctypes
import json
import mmap
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nano3.kernels.scaled import INTEGERS
from nano3.model.hf.checkpoint import Checkpoint, Source
from nano3.model.lm import LM

STORED = {torch.int8: "I8", torch.uint8: "I32", torch.float32: "F32", torch.float16: "F16"}
"""Type in a model -> in a file, where the bytes are the same."""
LEAST = 1 << 20
"""Bytes; smaller tensors are copied."""
LINE = 64
"""Of the processor's caches; numbers that begin in the middle of one are read more slowly, and are copied."""
MADV_HUGEPAGE, MADV_POPULATE_READ = 14, 22
"""As Linux numbers them."""


@dataclass
class _File:
    """A safetensors file in memory."""

    path: Path
    places: dict[str, Any] = field(init=False)
    """Name -> its entry in the header."""
    start: int = field(init=False)
    """Of the numbers."""
    _bytes: Tensor | None = None

    def __post_init__(self) -> None:
        with self.path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            self.places, self.start = json.loads(stream.read(length)), 8 + length

    def view(self, begin: int, size: int) -> Tensor:
        """Some of its bytes."""
        if self._bytes is None:
            whole = self.path.stat().st_size
            self._bytes = torch.from_file(str(self.path), shared=False, size=whole, dtype=torch.uint8)
            _advise(self._bytes, MADV_HUGEPAGE)
        return self._bytes[self.start + begin : self.start + begin + size]


def map_integers(model: LM, checkpoint: Checkpoint, wanted: list[Source]) -> set[str]:
    """Have integers of `model` and their scales, on the meta device until now, lie in the files of the folder.

    Returns:
        nano3's names of the tensors that do; all others are to be copied.
    """
    sources: dict[str, list[Source]] = {}
    for source in wanted:
        sources.setdefault(source.ours, []).append(source)
    files: dict[str, _File] = {}
    mapped = set()
    for name, owner, leaf in _of_integers(model):
        value = owner.get_parameter(leaf) if leaf in owner._parameters else owner.get_buffer(leaf)
        found = _in_place(checkpoint, files, sources[name], value)
        if found is None:
            continue
        if leaf in owner._parameters:
            owner._parameters[leaf] = torch.nn.Parameter(found, requires_grad=False)
        else:
            owner._buffers[leaf] = found
        mapped.add(name)
    return mapped


def _of_integers(model: LM) -> list[tuple[str, torch.nn.Module, str]]:
    """Name, module and attribute of integers and of their scales."""
    found = []
    for name, module in model.named_modules():
        for leaf, value in module._parameters.items():
            if value is not None and value.dtype in INTEGERS:
                found += [(f"{name}.{each}", module, each) for each in (leaf, f"{leaf}_scale")]
    return found


def _in_place(checkpoint: Checkpoint, files: dict[str, _File], sources: list[Source], value: Tensor) -> Tensor | None:
    """The tensor as a part of a file; None where its parts do not lie there in a row, as the model has them."""
    names = [checkpoint.stored[source.name] for source in sources]
    file = checkpoint.files[names[0]]
    if (
        value.nbytes < LEAST
        or any(checkpoint.files[name] != file for name in names)
        or Path(file).suffix != ".safetensors"
    ):
        return None
    if file not in files:
        files[file] = _File(checkpoint.folder / file)
    opened = files[file]
    entries = [opened.places[name] for name in names]
    bounds = [entry["data_offsets"] for entry in entries]
    begin, end = bounds[0][0], bounds[-1][1]
    in_a_row = all(first[1] == second[0] for first, second in pairwise(bounds))
    types = {entry["dtype"] for entry in entries} == {STORED[value.dtype]}
    if not (in_a_row and types and end - begin == value.nbytes and (opened.start + begin) % LINE == 0):
        return None
    return opened.view(begin, value.nbytes).view(value.dtype).view(value.shape)


def read_ahead(tensors: list[Tensor]) -> None:
    """Have the system read mapped tensors now, in the order in which they lie, rather than when they are first used."""
    for tensor in sorted(tensors, key=Tensor.data_ptr):
        _advise(tensor, MADV_POPULATE_READ)


def _advise(tensor: Tensor, advice: int) -> None:
    """Where the system takes advice about memory."""
    try:
        madvise = ctypes.CDLL(None).madvise
    except (AttributeError, OSError, TypeError):
        return
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    begin = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    madvise(begin, tensor.data_ptr() + tensor.nbytes - begin, advice)
