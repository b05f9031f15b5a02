"""Other packages as backends: whether they can be imported, and which calls are for them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
"""Types that the packages' kernels take."""


class Functions(NamedTuple):
    """What importing a package gave."""

    by_name: dict[str, Callable]
    """Its functions that a backend calls; empty where it cannot be imported."""
    problem: str | None
    """Why it cannot be imported, or None."""


def load(package: str, imports: Callable[[], dict[str, Callable]]) -> Functions:
    """The functions that `imports` returns, or what went wrong in one line.

    A package built for another PyTorch or without its CUDA library fails in its own ways, so any exception counts.
    """
    if find_spec(package.replace("-", "_")) is None:
        return Functions({}, f"{package} is not installed")
    try:
        return Functions(imports(), None)
    except Exception as error:
        words = " ".join(str(error).split())
        return Functions({}, f"import of {package} failed: {type(error).__name__}: {words}")


@contextmanager
def without_initialisation(package: str) -> Iterator[None]:
    """Inside, modules of `package` can be imported without running the package's own __init__.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    if package in sys.modules:
        yield
        return
    spec = find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"No module named {package!r}")
    stub = ModuleType(package)
    stub.__path__, stub.__spec__ = list(spec.submodule_search_locations), spec
    sys.modules[package] = stub
    try:
        yield
    finally:
        del sys.modules[package]  # whoever imports the package itself gets the real one


def for_device(device: torch.device) -> bool:
    """Whether kernels for GPUs run there: on CUDA, and on CPUs by Triton's interpreter."""
    return device.type == "cuda" or (device.type == "cpu" and interpreted())


def interpreted() -> bool:
    """Whether TRITON_INTERPRET has Triton's kernels run step by step on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def where(suits: Callable[..., bool], function: Callable, otherwise: Callable) -> Callable:
    """`function` where `suits` says so of the same arguments and no function transform is at work, else `otherwise`."""

    @wraps(otherwise)
    def call(*arguments: Any, **options: Any) -> Any:
        transformed = torch._C._are_functorch_transforms_active()
        chosen = function if not transformed and suits(*arguments, **options) else otherwise
        return chosen(*arguments, **options)

    return call


def of_types(*tensors: Tensor | None) -> bool:
    """Whether all tensors that there are have one of FLOATS and at least one element."""
    return all(t is None or (t.dtype in FLOATS and t.numel() > 0) for t in tensors)
