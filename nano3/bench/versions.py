"""Versions of what a measurement hangs on, for its record."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from nano3 import __version__

PACKAGES = ("torch", "numpy", "transformers", "llama-cpp-python", "vllm")


def versions() -> dict[str, str]:
    """nano3, Python, and those of PACKAGES that are installed."""
    found = {"nano3": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
