"""What this machine offers, read without importing torch."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from pathlib import Path

from nano3.cores import usable_cores

ISA_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16", "sve", "bf16")
_BF16_UNITS = {"amx_bf16", "avx512_bf16"}
_CPUINFO, _GPUS = Path("/proc/cpuinfo"), Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Hardware:
    """The processor, memory and CUDA devices of this machine."""

    cpu: str
    cores: int
    """Cores that this process may use."""
    isa: list[str]
    """Those instruction sets of ISA_FLAGS that the processor has."""
    memory: int
    """Bytes of main memory."""
    memory_available: int
    """Bytes of it that are free or can be freed."""
    gpus: list[str]
    """Names of the NVIDIA devices that the driver reports."""

    @property
    def compute_dtype(self) -> str:
        """What `train.dtype = "auto"` means here."""
        return "bfloat16" if self.gpus or _BF16_UNITS & set(self.isa) else "float32"


def detect() -> Hardware:
    """The hardware of this machine; what cannot be read is left empty."""
    import psutil

    info = _text(_CPUINFO)
    memory = psutil.virtual_memory()
    return Hardware(
        cpu=_field(info, "model name") or platform.processor() or platform.machine(),
        cores=usable_cores(),
        isa=_isa(info),
        memory=memory.total,
        memory_available=memory.available,
        gpus=_gpu_names(),
    )


def _isa(info: str) -> list[str]:
    flags = set((_field(info, "flags") or _field(info, "Features")).split())
    return [flag for flag in ISA_FLAGS if flag in flags]


def _field(info: str, name: str) -> str:
    match = re.search(rf"^{name}\s*:\s*(.+)$", info, re.MULTILINE)
    return match[1].strip() if match else ""


def _gpu_names() -> list[str]:
    return [_field(_text(path), "Model") or "NVIDIA device" for path in sorted(_GPUS.glob("*/information"))]


def _text(path: Path) -> str:
    """A file of the system; empty where there is none or it is not for this user."""
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""
