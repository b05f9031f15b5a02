"""The residual stream of all calibration tokens between two blocks, on disk: two files that take turns."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor


class HiddenFiles:
    """(tokens, D) before each block. Block i reads one file and writes the other, so that it can be done again."""

    def __init__(self, folder: Path, width: int, dtype: torch.dtype) -> None:
        self._folder, self._width, self._dtype = folder, width, dtype

    def read(self, block: int, start: int, count: int) -> Tensor:
        """(1, count, D): tokens start .. start + count - 1 as they enter a block."""
        x = torch.empty(1, count, self._width, dtype=self._dtype)
        with self._file(block).open("rb") as stream:
            stream.seek(start * self._width * self._dtype.itemsize)
            if stream.readinto(x.view(-1).view(torch.uint8).numpy().data) != x.nbytes:
                raise EOFError(f"{self._file(block)}: is cut short; remove {self._folder} and begin again")
        return x

    def write(self, block: int, start: int, x: Tensor) -> None:
        """Keep (1, count, D) as what enters a block."""
        file = self._file(block)
        file.touch()
        with file.open("r+b") as stream:
            stream.seek(start * self._width * self._dtype.itemsize)
            stream.write(x.to(self._dtype).contiguous().view(-1).view(torch.uint8).numpy().data)

    def sync(self, block: int) -> None:
        """Flush to disk what enters a block."""
        if self._file(block).exists():
            with self._file(block).open("r+b") as stream:
                os.fsync(stream.fileno())

    def remove(self) -> None:
        """Both files."""
        for block in (0, 1):
            self._file(block).unlink(missing_ok=True)

    def _file(self, block: int) -> Path:
        return self._folder / f"hidden-{block % 2}.bin"
