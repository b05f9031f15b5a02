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
NONE = "none"
_AVX2 = {"avx2", "fma", "f16c"}
_AVX512 = {"avx512f", "avx512bw", "avx512vl", "avx512dq", *_AVX2}
_BF16 = {"avx512_bf16", "avx512_vnni", *_AVX512}
NEEDS = {
    "amx": {"amx_tile", "amx_bf16", "amx_int8", *_BF16},
    "avx512bf16": _BF16,
    "avx512vnni": {"avx512_vnni", *_AVX512},
    "avx512": _AVX512,
    "avxvnni": {"avx_vnni", *_AVX2},
    "avx2": _AVX2,
}
"""CPU features of each level, the best first."""
BASES = {"amx": "avx512", "avx512bf16": "avx512", "avx512vnni": "avx512", "avxvnni": "avx2"}
"""Where a level takes the kernels from that it has not got itself. Those with bfloat16 products have only what
multiplies by weights; float32 activations go through the kernels of the level below: they are never rounded to
bfloat16. Those with VNNI are the level below with other products of 8-bit integers."""
ROUNDING = frozenset({"amx", "avx512bf16"})
"""Levels with bfloat16 products."""
LIBRARY = "_native.so"
ABI = 8
"""Of the sources this file belongs to; see src/abi.cpp."""
TYPES = {torch.float32: 0, torch.bfloat16: 1}
_UNKNOWN = "the compiler did not know it when nano3 was installed, or the operating system does not allow it"


class LevelError(ValueError):
    """NANO3_CPU_ISA asks for a level that nothing here can run."""


class Native(NamedTuple):
    """The library and the level that is used."""

    library: ctypes.CDLL | None
    isa: str
    reason: str
    """Why there is none, in words; empty when there is."""

    def function(self, name: str, *, exact: bool = False):
        """One kernel at this level, or at the one below it; `exact`: one that multiplies float32 numbers only."""
        own = None if exact else getattr(self.library, f"nano3_{name}_{self.isa}", None)
        return own or getattr(self.library, f"nano3_{name}_{BASES.get(self.isa, self.isa)}")

    def rounds(self, activations: torch.dtype) -> bool:
        """Whether products with bfloat16 weights are of bfloat16 numbers: the level has those, and the type fits."""
        return self.isa in ROUNDING and activations == torch.bfloat16


@cache
def native() -> Native:
    """The library as it is used in this process.

    Raises:
        LevelError: NANO3_CPU_ISA is no level, or one that this machine cannot run.
    """
    found = _choose()
    if found.library is not None and found.isa in BASES:
        # All of them have the instructions.
        getattr(found.library, f"nano3_use_vnni_{BASES[found.isa]}")(1)
    return found


def _choose() -> Native:
    forced = os.environ.get(ENVIRONMENT, "")
    if forced == NONE:
        return Native(None, "", f"switched off by {ENVIRONMENT}")
    flags = cpu_flags()
    levels = [name for name, needs in NEEDS.items() if needs <= flags]
    library, missing = _load()
    if not forced:
        if not levels:
            return Native(None, "", "this processor has no AVX2")
        return Native(None, "", missing) if library is None else _best(library, levels)
    able = [] if library is None else [name for name in levels if _allowed(library, name)]
    if forced not in able:
        raise LevelError(_refusal(forced, levels, able, missing))
    return Native(library, forced, "")


def _refusal(forced: str, levels: list[str], able: list[str], missing: str) -> str:
    """Why a level cannot be, and what can."""
    if forced not in NEEDS:
        why = f"must be one of {', '.join(NEEDS)}, {NONE}"
    elif forced not in levels:
        why = f"this processor has no {forced.upper()}"
    else:
        why = missing or _UNKNOWN
    return f"{ENVIRONMENT} is {forced!r}: {why}; this machine can run {', '.join([*able, NONE])}"


def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or why there is none."""
    file = _file()
    if file is None:
        return None, f"not built in {Path(__file__).parent}: pip install with a C++ compiler builds it"
    try:
        library = ctypes.CDLL(str(file))
        fits = library.nano3_abi() == ABI
    except (OSError, AttributeError) as error:
        return None, f"{file} cannot be loaded: {error}"
    return (library, "") if fits else (None, f"{file} was built from other sources: install nano3 again")


def _file() -> Path | None:
    """The library beside this file; for a source tree in front of an installed nano3, the installed one's."""
    folders = [Path(__file__).parent]
    with suppress(PackageNotFoundError):
        folders.append(Path(str(distribution("nano3").locate_file("nano3/kernels/cpu"))))
    # What earlier versions built had Python's version in its name.
    found = (sorted(folder.glob("_native*.so"), key=lambda file: file.name != LIBRARY) for folder in folders)
    return next((file for files in found for file in files), None)


def _best(library: ctypes.CDLL, levels: list[str]) -> Native:
    """The first of the levels that can be used."""
    for isa in levels:
        if _allowed(library, isa):
            return Native(library, isa, "")
    return Native(None, "", f"no {levels[0].upper()}: {_UNKNOWN}")


def _allowed(library: ctypes.CDLL, isa: str) -> bool:
    """Whether the compiler knew a level and the operating system lets us use it."""
    if isa not in BASES:
        return True
    if isa not in ROUNDING:
        return hasattr(library, f"nano3_use_vnni_{BASES[isa]}")
    level = getattr(library, f"nano3_level_{isa}", None)
    return level is not None and bool(level())


def cpu_flags() -> set[str]:
    """Features of this CPU as Linux names them; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), set())
