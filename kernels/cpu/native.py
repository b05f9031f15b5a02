"""The compiled library: where it is, which instruction set it uses here, and whether it computes what it should."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

import torch

ENVIRONMENT = "NANO3_CPU_ISA"
"""Forces one of the levels, or `none` to do without the library."""
_AVX512 = {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx2", "fma"}
NEEDS = {
    "amx": {"amx_tile", "amx_bf16", "avx512_bf16", *_AVX512},
    "avx512bf16": {"avx512_bf16", *_AVX512},
    "avx512": _AVX512,
    "avx2": {"avx2", "fma"},
}
"""CPU features of each level, the best first."""
BASES = {"amx": "avx512", "avx512bf16": "avx512"}
"""Where a level takes the kernels from that it has not got itself: it has only those that multiply by weights."""
ABI = 3
"""Of the sources this file belongs to; see src/abi.cpp."""
TYPES = {torch.float32: 0, torch.bfloat16: 1}


class Native(NamedTuple):
    """The library and the level that is used."""

    library: ctypes.CDLL | None
    isa: str
    reason: str
    """Why there is none, in words; empty when there is."""

    def function(self, name: str):
        """One kernel at this level, or at the one below it."""
        own = getattr(self.library, f"nano3_{name}_{self.isa}", None)
        return own or getattr(self.library, f"nano3_{name}_{BASES.get(self.isa, self.isa)}")


@cache
def native() -> Native:
    """The library as it is used in this process."""
    forced = os.environ.get(ENVIRONMENT, "")
    if forced == "none":
        return Native(None, "", f"switched off by {ENVIRONMENT}")
    if forced and forced not in NEEDS:
        raise ValueError(f"{ENVIRONMENT} is {forced!r}; it must be one of {', '.join(NEEDS)}, none")
    flags = cpu_flags()
    levels = [name for name, needs in NEEDS.items() if needs <= flags and forced in ("", name)]
    if not levels:
        return Native(None, "", f"this processor has no {forced.upper() or 'AVX2'}")
    file = _file()
    if file is None:
        return Native(None, "", f"not built in {Path(__file__).parent}: pip install with a C++ compiler builds it")
    try:
        library = ctypes.CDLL(str(file))
        if library.nano3_abi() != ABI:
            return Native(None, "", f"{file} was built from other sources: install nano3 again")
    except (OSError, AttributeError) as error:
        return Native(None, "", f"{file} cannot be loaded: {error}")
    return _best(library, levels)


def _file() -> Path | None:
    """The library beside this file; for a source tree in front of an installed nano3, the installed one's."""
    folders = [Path(__file__).parent]
    with suppress(PackageNotFoundError):
        folders.append(Path(str(distribution("nano3").locate_file("nano3/kernels/cpu"))))
    return next((file for folder in folders for file in sorted(folder.glob("_native*.so"))), None)


def _best(library: ctypes.CDLL, levels: list[str]) -> Native:
    """The first of the levels that the compiler knew and that the operating system lets us use."""
    for isa in levels:
        if isa not in BASES:
            return Native(library, isa, "")
        level = getattr(library, f"nano3_level_{isa}", None)
        if level is not None and level():
            return Native(library, isa, "")
    why = "the compiler did not know it when nano3 was installed, or the operating system does not allow it"
    return Native(None, "", f"no {levels[0].upper()}: {why}")


def cpu_flags() -> set[str]:
    """Features of this CPU as Linux names them; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), set())
