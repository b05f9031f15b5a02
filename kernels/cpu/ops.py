"""All ops of the C++ backend; see nano3.kernels.ops for what each computes."""

from __future__ import annotations

from collections.abc import Callable

from . import attention, best, conv, dense, experts, loss, mamba, norm, route, scan
from .call import Kernel

MODULES = (attention, best, conv, dense, experts, loss, mamba, norm, route, scan)
KERNELS: dict[str, Kernel] = {name: kernel for module in MODULES for name, kernel in module.KERNELS.items()}
FUNCTIONS: dict[str, Callable] = {name: kernel.function for name, kernel in KERNELS.items()}
