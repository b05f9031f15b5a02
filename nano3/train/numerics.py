"""Compute dtype by device, and settings of the process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy
import torch

from nano3.kernels.allocator import keep_freed_memory

BF16_FLAGS = {"amx_bf16", "avx512_bf16"}
"""CPU features with which bfloat16 matmuls beat float32 ones."""


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of activations: `auto` is bfloat16 on CUDA and on CPUs with bf16 matrix instructions, else float32."""
    if name != "auto":
        return {"bfloat16": torch.bfloat16, "float32": torch.float32}[name]
    fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else bool(BF16_FLAGS & cpu_flags())
    return torch.bfloat16 if fast else torch.float32


def cpu_flags() -> set[str]:
    """Features of this CPU as Linux names them; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), set())


def tune_process(device: torch.device) -> None:
    """Settings for a long CPU run; call before the first tensor work, so that worker threads inherit them.

    Subnormal numbers (the moments of rarely seen embeddings end there) cost CPUs up to 100 times a normal operation
    and mean nothing here, so they are flushed to zero.
    """
    if device.type == "cpu":
        # NumPy looks up the smallest subnormal once, and warns where that comes out as zero.
        for name in ("float32", "float64"):
            numpy.finfo(numpy.dtype(name))
        torch.set_flush_denormal(True)
        keep_freed_memory()


@contextmanager
def tuned_process(device: torch.device) -> Iterator[None]:
    """`tune_process` for the length of the block: afterwards subnormal numbers are numbers again."""
    tune_process(device)
    try:
        yield
    finally:
        if device.type == "cpu":
            torch.set_flush_denormal(False)
