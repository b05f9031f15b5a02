"""The compiled library: where it is, which instruction set it uses here, and whether it computes what it should."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

ENVIRONMENT = "NANO3_CPU_ISA"
"""Forces `avx512` or `avx2`, or `none` to do without the library."""
NEEDS = {"avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx2", "fma"}, "avx2": {"avx2", "fma"}}
"""CPU features of each level, the best first."""
ABI = 1
"""Of the sources this file belongs to; see src/abi.cpp."""
TYPES = {torch.float32: 0, torch.bfloat16: 1}


class Native(NamedTuple):
    """The library and the level that is used."""

    library: ctypes.CDLL | None
    isa: str
    reason: str
    """Why there is none, in words; empty when there is."""

    def function(self, name: str):
        """One kernel at this level."""
        return getattr(self.library, f"nano3_{name}_{self.isa}")


@cache
def native() -> Native:
    """The library as it is used in this process."""
    forced = os.environ.get(ENVIRONMENT, "")
    if forced == "none":
        return Native(None, "", f"switched off by {ENVIRONMENT}")
    if forced and forced not in NEEDS:
        raise ValueError(f"{ENVIRONMENT} is {forced!r}; it must be one of {', '.join(NEEDS)}, none")
    flags = cpu_flags()
    isa = next((name for name, needs in NEEDS.items() if needs <= flags and forced in ("", name)), None)
    if isa is None:
        return Native(None, "", f"this processor has no {forced or 'AVX2'}")
    files = sorted(Path(__file__).parent.glob("_native*.so"))
    if not files:
        return Native(None, "", "not built: no C++ compiler that could do it when nano3 was installed")
    try:
        library = ctypes.CDLL(str(files[0]))
        if library.nano3_abi() == ABI:
            return Native(library, isa, "")
    except (OSError, AttributeError) as error:
        return Native(None, "", f"{files[0].name} cannot be loaded: {error}")
    return Native(None, "", f"{files[0].name} was built from other sources: install nano3 again")


def cpu_flags() -> set[str]:
    """Features of this CPU as Linux names them; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), set())
