"""Versions of what a measurement hangs on, for its record."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from nano3 import __version__

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "numpy", "transformers", "llama-cpp-python", "vllm", "triton", "mamba-ssm", "causal-conv1d")


def versions() -> dict[str, str]:
    """nano3, Python, and those of PACKAGES that are installed."""
    found = {"nano3": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def device_name(device: torch.device) -> str:
    """Of a GPU; empty for the CPU."""
    if device.type == "cpu":
        return ""
    from torch.cuda import get_device_name

    return get_device_name(device)
