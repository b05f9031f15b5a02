"""Where C++ may read and write tensors by address: the rest, tracing above all, belongs to PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._C._dynamo import eval_frame
from torch.autograd import forward_ad

Traced = TypeVar("Traced", bound=Callable)
_PLAIN = {Tensor, nn.Parameter}
_TRACERS = tuple(
    getattr(torch._C._TorchDispatchModeKey, name)
    for name in ("FAKE", "PROXY", "FUNCTIONAL")
    if hasattr(torch._C._TorchDispatchModeKey, name)
)


def guarded(function: Callable, otherwise: Callable) -> Callable:
    """`function` where it may run, `otherwise` elsewhere."""

    @wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        if may_run(*arguments, *options.values()):
            return function(*arguments, **options)
        return otherwise(*arguments, **options)

    return opaque(call)


def opaque(function: Traced) -> Traced:
    """What torch.compiler.disable does, at no cost a call and without the import of the compiler.

    Compiled code would hold addresses of tensors that nothing keeps alive, and run self-checks. So the compiler
    breaks the graph at the call, and compiles neither this frame nor those that it calls.
    """
    skip = eval_frame._FrameAction.SKIP
    code = function.__code__  # type: ignore[attr-defined]
    eval_frame.set_code_exec_strategy(code, eval_frame._FrameExecStrategy(skip, skip))
    vars(function)["_torchdynamo_disable"] = True
    return function


def may_run(*arguments: Any) -> bool:
    """Whether all tensors are plain ones, and nothing around the call traces it or changes what PyTorch's ops return.

    Autocast makes bfloat16 of products that the kernels take for float32.
    """
    for a in arguments:
        if isinstance(a, Tensor) and type(a) not in _PLAIN:
            return False
    return not (
        torch.is_autocast_enabled("cpu")
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state()
        or forward_ad._current_level >= 0
        or (torch._C._len_torch_dispatch_stack() and any(map(torch._C._get_dispatch_mode, _TRACERS)))
    )
