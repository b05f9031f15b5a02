"""All ops of the C++ backend; see nano3.kernels.ops for what each computes."""

from __future__ import annotations

from collections.abc import Callable

from ..eager import FUNCTIONS as EAGER
from . import attention, best, conv, dense, experts, log_probs, loss, mamba, norm, route, scan
from .call import Kernel
from .guard import guarded

MODULES = (attention, best, conv, dense, experts, log_probs, loss, mamba, norm, route, scan)
KERNELS: dict[str, Kernel] = {name: kernel for module in MODULES for name, kernel in module.KERNELS.items()}
FUNCTIONS: dict[str, Callable] = {name: guarded(kernel.function, EAGER[name]) for name, kernel in KERNELS.items()}
