"""Safetensors files out of the parts of tensors that ranks hold: nobody ever has a whole tensor, or a whole file.

The first rank writes. It lays out each file, then takes one part after the other, in the type on disk, to its place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nano3.model.hf.names import named_tensors
from nano3.model.lm import LM
from nano3.model.shards import is_sharded, local_part

_TYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""Names of types in safetensors files, in the order in which it lays them out."""
_Bounds = tuple[tuple[int, int], ...]
"""Start and end along each dimension."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a folder to write."""

    name: str
    """Published name."""
    ours: str
    """nano3's name of what it is, or is a part of."""
    value: Tensor
    expert: int | None
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor in the file."""
        return tuple(self.value.shape if self.expert is None else self.value.shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def tensors_of_all(model: LM) -> list[tuple[str, Tensor]]:
    """`named_tensors` of the whole model, where ranks hold different blocks of it: meta tensors for those of others.
    Every rank must call then."""
    held = dict(named_tensors(model))
    if not model.is_part:
        return list(held.items())
    described: list[dict[str, Any]] = [{}] * dist.get_world_size()
    dist.all_gather_object(described, {name: (tuple(value.shape), value.dtype) for name, value in held.items()})
    others = {name: value for of_rank in described for name, value in of_rank.items()}
    with torch.device("meta"):
        known = [name for name, _ in named_tensors(LM(model.cfg)) if name in others]
    names = [*known, *sorted(others.keys() - set(known))]
    empty = {name: torch.empty(others[name][0], dtype=others[name][1], device="meta") for name in names}
    return [(name, held.get(name, empty[name])) for name in names]


class PartsWriter:
    """Writes files of the tensors of `model`, of which some are sharded or other ranks', who must make one too and call
    alike."""

    def __init__(self, model: LM) -> None:
        held = [(name, value) for name, value in named_tensors(model) if is_sharded(value) or model.is_part]
        parts = {name: local_part(value)[1] for name, value in held}
        mine = {name: _bounds(slices) for name, slices in parts.items()}
        self.places: list[dict[str, _Bounds]] = [{}] * dist.get_world_size()
        """Of each rank: where its part of each tensor lies that not every rank holds whole."""
        dist.all_gather_object(self.places, mine)
        self.rank = dist.get_rank()

    def write(self, path: Path | None, items: Sequence[StoredTensor]) -> OSError | None:
        """Write a file of these items.

        Args:
            path: on the first rank, which writes; None on the others.
            items: the experts of one tensor one after the other.

        Returns:
            On the first rank why the file could not be written; it takes the others' parts all the same.
        """
        file, error = None, None
        if path is not None:
            try:
                file = RangeFile(path, items)
            except OSError as failure:
                error = failure
        for _, group in groupby(items, key=lambda item: item.ours):
            same = list(group)
            for bounds, part in self._parts(same):
                try:
                    if file is not None and error is None:
                        _write_part(file, same, bounds, part)
                except OSError as failure:
                    error = failure
        try:
            if file is not None:
                file.close()
        except OSError as failure:  # over a network a full disk may be told only here
            error = error or failure
        return error

    def _parts(self, items: list[StoredTensor]) -> Iterator[tuple[_Bounds, Tensor]]:
        """On the first rank, the parts of one tensor as far as `items` are of it; the other ranks send theirs."""
        first, asked = items[0], _asked(items)
        if not any(first.ours in places for places in self.places):
            if self.rank == 0:
                yield asked, _cut(first.value.detach(), asked, first.dtype)
            return
        own, places = local_part(first.value)
        for bounds, rank in self._senders(first.ours).items():
            if (common := _common(bounds, asked)) is None:
                continue
            if rank == self.rank:
                start = tuple(place.start for place in places)
                inner = tuple((a - s, b - s) for (a, b), s in zip(common, start, strict=True))
                part = _cut(own, inner, first.dtype)
                if rank == 0:
                    yield common, part
                else:
                    dist.send(_bytes(part), dst=0)
            elif self.rank == 0:
                part = torch.empty([stop - start for start, stop in common], dtype=first.dtype)
                dist.recv(_bytes(part), src=rank)
                yield common, part

    def _senders(self, name: str) -> dict[_Bounds, int]:
        """Each part of a tensor that is not empty, and the first rank that has it."""
        senders: dict[_Bounds, int] = {}
        for rank, places in enumerate(self.places):
            if name in places and all(start < stop for start, stop in places[name]):
                senders.setdefault(places[name], rank)
        return senders


class RangeFile:
    """A safetensors file, laid out as its library would, whose tensors are written part by part."""

    def __init__(self, path: Path, items: Sequence[StoredTensor]) -> None:
        """Write the header, and make the file as long as it is going to be."""
        order, places, end = list(_TYPES), {}, 0
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        for item in sorted(items, key=lambda item: (order.index(item.dtype), item.name)):
            places[item.name] = end, item
            header[item.name] = {
                "dtype": _TYPES[item.dtype],
                "shape": list(item.shape),
                "data_offsets": [end, end + item.nbytes],
            }
            end += item.nbytes
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._places, self._start = places, 8 + len(text)
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115 (until `close`)
        try:
            self._put(len(text).to_bytes(8, "little") + text, 0)
            self._file.truncate(self._start + end)
        except OSError:
            self.close()
            raise

    def write(self, name: str, bounds: _Bounds, part: Tensor) -> None:
        """Write the part of tensor `name` that lies at `bounds`."""
        offset, item = self._places[name]
        size, rows = item.dtype.itemsize, part.contiguous()
        # As many last dimensions as are whole, and the one before them, are one run of bytes.
        last = len(item.shape) - 1
        while last > 0 and bounds[last] == (0, item.shape[last]):
            last -= 1
        strides = [math.prod(item.shape[i + 1 :]) for i in range(len(item.shape))]
        runs = rows.reshape(-1, math.prod(rows.shape[last:])) if item.shape else rows.reshape(1, 1)
        starts = product(*(range(*bounds[i]) for i in range(last)))
        for run, at in zip(runs, starts, strict=True):
            places = [*at, *(start for start, _ in bounds[last:])]
            first = sum(place * stride for place, stride in zip(places, strides, strict=True))
            self._put(_bytes(run).numpy().data, self._start + offset + first * size)

    def close(self) -> None:
        """No more comes."""
        self._file.close()

    def _put(self, data: bytes | memoryview, offset: int) -> None:
        self._file.seek(offset)
        while len(data):
            data = data[self._file.write(data) :]


def _write_part(file: RangeFile, items: list[StoredTensor], bounds: _Bounds, part: Tensor) -> None:
    """A part of what these items are, to the places of those of them that it is of."""
    if items[0].expert is None:
        return file.write(items[0].name, bounds, part)
    first, stop = bounds[0]
    for item in items:
        assert item.expert is not None
        if first <= item.expert < stop:
            file.write(item.name, bounds[1:], part[item.expert - first])
    return None


def _asked(items: list[StoredTensor]) -> _Bounds:
    """The part of a tensor that its `items` are: all of it, or some experts."""
    whole = tuple((0, size) for size in items[0].value.shape)
    experts = [item.expert for item in items if item.expert is not None]
    return ((min(experts), max(experts) + 1), *whole[1:]) if experts else whole


def _common(first: _Bounds, second: _Bounds) -> _Bounds | None:
    both = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(first, second, strict=True))
    return both if all(start < stop for start, stop in both) else None


def _cut(tensor: Tensor, bounds: _Bounds, dtype: torch.dtype) -> Tensor:
    """A part of a tensor in main memory."""
    part = tensor[tuple(slice(start, stop) for start, stop in bounds)]
    return part.to(device="cpu", dtype=dtype).contiguous()


def _bounds(slices: tuple[slice, ...]) -> _Bounds:
    return tuple((part.start, part.stop) for part in slices)


def _bytes(tensor: Tensor) -> Tensor:
    """The same memory as numbers that every transport knows."""
    return tensor.flatten().view(torch.uint8)
