"""Adapters added to the weights: W + scale * B A, computed in float32 and rounded once to the type of W."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nano3.config.errors import UserError
from nano3.kernels.scaled import FLOATS
from nano3.model.hf.names import is_adapter
from nano3.model.layers import Linear
from nano3.model.lora.apply import adapted
from nano3.model.lora.modules import Adapter, LoraExperts, LoraLinear
from nano3.model.moe import Experts
from nano3.model.shards import is_sharded, local_part


def merge(model: nn.Module) -> None:
    """Add all adapters to the weights, which can train again, and leave plain modules, in place.

    Raises:
        UserError: the weights are quantized.
    """
    _check_plain(model)
    for name, module in list(adapted(model)):
        _add(module)
        model.set_submodule(name, _plain(module))
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.dtype in FLOATS)


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """While this lasts, the weights of `model` hold its adapters' products; afterwards they are what they were, bit for
    bit. Takes a copy of the adapted weights in main memory. Without adapters nothing is done.

    Under FSDP every rank must enter, and merges its own shards.

    Raises:
        UserError: the weights are quantized.
    """
    _check_plain(model)
    kept: list[tuple[Tensor, Tensor]] = []
    modules = [module for _, module in adapted(model)]
    try:
        for module in modules:
            kept += [(local, local.cpu().clone()) for local in (_local(a.weight) for a in module.adapters())]
            _add(module)
        yield
    finally:
        with torch.no_grad():
            for local, before in kept:
                local.copy_(before)
        for module in modules:
            module.merged = False


def is_quantized(model: nn.Module) -> bool:
    """Whether weights that have an adapter are quantized, and so cannot hold its product."""
    adapters = (adapter for _, module in adapted(model) for adapter in module.adapters())
    return any(adapter.weight.dtype not in FLOATS for adapter in adapters)


def unmerged(model: nn.Module) -> list[str]:
    """Names of the adapters whose product the weights do not hold."""
    modules = [(name, module) for name, module in adapted(model) if not module.merged]
    return [f"{name}.{adapter.name}'s adapter" for name, module in modules for adapter in module.adapters()]


def _check_plain(model: nn.Module) -> None:
    for name, module in adapted(model):
        if any(adapter.weight.dtype not in FLOATS for adapter in module.adapters()):
            raise UserError(
                f"{name} is quantized, and its numbers cannot hold an adapter: run the adapter unmerged, or merge it "
                "into the unquantized model and quantize that"
            )


def _add(module: LoraLinear | LoraExperts) -> None:
    for adapter in module.adapters():
        weight = _local(adapter.weight)
        product = torch.matmul(*_factors(adapter)) * module.scale
        with torch.no_grad():
            weight.copy_(weight.float() + product)
    module.merged = True


def _factors(adapter: Adapter) -> tuple[Tensor, Tensor]:
    """B and A in float32, as far as they concern this rank's part of the weight: its rows, or its experts."""
    if not is_sharded(adapter.weight):
        return adapter.B.detach().float(), adapter.A.detach().float()
    (_, places), (b, of_b) = local_part(adapter.weight), local_part(adapter.B)
    assert of_b[0] == places[0], "an adapter is sharded as its weight is"
    stacked = adapter.weight.dim() == 3
    a = local_part(adapter.A)[0] if stacked else adapter.A.full_tensor()  # pyright: ignore
    return b.float(), a.detach().float()


def _local(weight: nn.Parameter) -> Tensor:
    return local_part(weight)[0]


def _plain(module: LoraLinear | LoraExperts) -> nn.Module:
    """The module without adapters, on the same weights and buffers."""
    kind = Linear if isinstance(module, LoraLinear) else Experts
    plain = kind.__new__(kind)
    nn.Module.__init__(plain)
    for name, parameter in module._parameters.items():
        if not is_adapter(name):
            plain.register_parameter(name, parameter)
    for name, buffer in module._buffers.items():
        plain.register_buffer(name, buffer)
    return plain.train(module.training)
