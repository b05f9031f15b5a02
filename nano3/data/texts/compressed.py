"""Files as streams of bytes, plain or unpacked while they are read, in bounded memory."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import IO, Any

COMPRESSED = (".gz", ".zst")
ZSTANDARD_PIECE = 1 << 12
"""Bytes unpacked at once: a block of 4 bytes can stand for 128 KiB, so 128 MiB is the most that can come of them."""


def open_bytes(path: Path) -> IO[bytes]:
    """The content of a file, unpacked where its name ends in .gz or .zst."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if suffix == ".zst":
        return io.BufferedReader(_ZstandardFile(path), buffer_size=1 << 20)
    return path.open("rb")


class _ZstandardFile(io.RawIOBase):
    """Content of a Zstandard file of any number of frames; one cut short is an EOFError, not an early end."""

    def __init__(self, path: Path) -> None:
        import zstandard

        self._file = path.open("rb", buffering=1 << 18)
        self._new_frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj
        self._frame = self._new_frame()
        self._begun = False
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            data = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame, self._begun = self._new_frame(), False
            data = data or self._file.read(ZSTANDARD_PIECE)
            if not data:
                if self._begun:
                    raise EOFError("the last frame has no end")
                return 0
            self._begun = True
            self._ready = memoryview(self._frame.decompress(data))
        n = min(len(buffer), len(self._ready))
        buffer[:n], self._ready = self._ready[:n], self._ready[n:]
        return n

    def close(self) -> None:
        self._file.close()
        super().close()
