"""The beginning of a GGUF file: metadata, and what tensors it holds and where (docs/gguf.md of ggml).

Read here and not with the package gguf: that takes minutes for a vocabulary of 131,072 entries, and fails in many ways
on a damaged file.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np

from nano3.config.errors import UserError

MAGIC, VERSIONS = b"GGUF", (2, 3)
ALIGNMENT = "general.alignment"
_NAMES = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
_NUMBERS = {code: np.dtype(name) for code, name in _NAMES.items()}
"""GGUF's type of a value -> numpy's."""
_STRING, _ARRAY = 8, 9
MOST_DIMENSIONS = 4


@dataclass(frozen=True)
class Entry:
    """One tensor of a file."""

    name: str
    shape: tuple[int, ...]
    """Rows first, as torch has it."""
    code: int
    """ggml's number of its type."""
    start: int
    """Of its bytes in the file."""


@dataclass(frozen=True)
class Header:
    """All but the numbers."""

    fields: dict[str, Any]
    """Metadata by key."""
    entries: list[Entry]


def read_header(path: Path, data: mmap) -> Header:
    """
    Args:
        path: of the file, for errors.
        data: its bytes.

    Raises:
        UserError: it is cut off, damaged, or of another version.
    """
    try:
        return _header(_Cursor(data), path)
    except (struct.error, IndexError, KeyError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: its beginning is cut off or damaged; copy the file again") from None


def _header(cursor: _Cursor, path: Path) -> Header:
    if bytes(cursor.take(4)) != MAGIC:
        raise UserError(f"{path}: is no GGUF file (it does not begin with GGUF); copy the file again")
    if (version := cursor.number("<I")) not in VERSIONS:
        raise UserError(f"{path}: is GGUF of version {version}; nano3 reads {VERSIONS[0]} and {VERSIONS[1]}")
    n_tensors, n_fields = cursor.number("<Q"), cursor.number("<Q")
    fields = {}
    for _ in range(n_fields):
        key = cursor.text()
        fields[key] = cursor.value(cursor.number("<I"))
    entries = [_entry(cursor) for _ in range(n_tensors)]
    alignment = fields.get(ALIGNMENT, 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(alignment)
    base = -(-cursor.at // alignment) * alignment
    return Header(fields, [Entry(e.name, e.shape, e.code, base + e.start) for e in entries])


def _entry(cursor: _Cursor) -> Entry:
    name, dimensions = cursor.text(), cursor.number("<I")
    if dimensions > MOST_DIMENSIONS:
        raise ValueError(dimensions)
    shape = tuple(cursor.number("<Q") for _ in range(dimensions))[::-1]
    if math.prod(shape) >= 1 << 62:
        raise ValueError(shape)
    return Entry(name, shape, cursor.number("<I"), cursor.number("<Q"))


class _Cursor:
    """A place in the file that moves on with what is read. Raises struct.error or IndexError at its end."""

    def __init__(self, data: mmap) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise IndexError(size)
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, form: str) -> int:
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def text(self) -> str:
        return self.take(self.number("<Q")).decode("utf-8", errors="replace")

    def value(self, code: int) -> Any:
        if code == _STRING:
            return self.text()
        if code != _ARRAY:
            return self._numbers(code, 1)[0]
        inner, count = self.number("<I"), self.number("<Q")
        if inner == _STRING:
            return [self.text() for _ in range(count)]
        return self._numbers(inner, count)

    def _numbers(self, code: int, count: int) -> list[Any]:
        kind = _NUMBERS[code]
        return np.frombuffer(self.take(count * kind.itemsize), kind).tolist()
