"""Reading memory in C++ as fast as it comes: the ceiling of everything that reads weights."""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import addressof, c_float, c_int
from typing import NamedTuple

import torch
from torch import Tensor

from ..call import I, L, P
from ..native import NEEDS, cpu_flags, native

WIDTHS = {"avx512": 512, "avx2": 256}
"""Levels with a kernel of their own, and the bits of their vectors."""
STREAMS = (1, 4, 8)
"""Places that a thread reads from at once."""
AHEAD = (0, 1024)
"""Bytes by which memory is asked for before it is read; 0: it is left to the processor."""
SIGNATURE = (P, L, L, c_int, L, P, I)


class Reader(NamedTuple):
    """One way to read."""

    level: str
    streams: int
    ahead: int

    @property
    def name(self) -> str:
        """In words."""
        places = f"{self.streams} stream{'s' if self.streams > 1 else ''}"
        return f"C++, {WIDTHS[self.level]} bits, {places}" + f", {self.ahead} bytes ahead" * bool(self.ahead)

    def read(self, data: Tensor, passes: int = 1) -> float:
        """Read all of a contiguous float32 tensor `passes` times, with as many threads as PyTorch uses: the sum of what
        was read."""
        if data.dtype != torch.float32 or not data.is_contiguous() or data.device.type != "cpu":
            raise ValueError("read: data must be contiguous float32 on the CPU")
        total = c_float()
        function = getattr(native().library, f"nano3_read_{self.level}")
        function.argtypes, function.restype = SIGNATURE, c_int
        place, count = data.data_ptr(), data.numel()
        function(place, count, passes, self.streams, self.ahead, addressof(total), torch.get_num_threads())
        return total.value


def readers() -> Iterator[Reader]:
    """All ways to read that this machine has; none without the library."""
    if native().library is None:
        return
    flags = cpu_flags()
    for level in WIDTHS:
        if NEEDS[level] <= flags:
            yield from (Reader(level, streams, ahead) for streams in STREAMS for ahead in AHEAD)
