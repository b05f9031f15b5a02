"""Whether a model is still what a decoding step was made for."""

from __future__ import annotations

from itertools import chain
from operator import attrgetter

from torch import Tensor, nn

from nano3.kernels.scaled import FLOATS
from nano3.model.attention import Attention
from nano3.model.block import Block
from nano3.model.decode.interface import DecodingModel
from nano3.model.layers import Linear, RMSNorm
from nano3.model.mamba2 import CausalConv1d, GatedRMSNorm, Mamba2
from nano3.model.mlp import MLP
from nano3.model.moe import Experts, MoE
from nano3.model.router import Router

PLAIN = {nn.Embedding, nn.ModuleList, Block, RMSNorm, Linear, Mamba2, CausalConv1d, GatedRMSNorm}
PLAIN |= {Attention, MoE, Experts, Router, MLP}
"""Modules whose computation the program knows; a model with others inside goes op by op."""

SCALARS: dict[type, tuple[str, ...]] = {
    nn.Embedding: ("max_norm",),
    RMSNorm: ("eps",),
    GatedRMSNorm: ("eps", "group_width"),
    Mamba2: ("cfg",),
    Attention: ("cfg", "fp8_cache"),
    Router: ("top_k", "scale"),
}
"""Attributes of modules that their computation hangs on, besides weights."""

_DTYPE = attrgetter("dtype")


class Watched:
    """A model as it was when this was made. No reference to the model itself: it is the key to this."""

    def __init__(self, model: DecodingModel) -> None:
        self.compute = model.compute_dtype
        modules = list(model.modules())
        self._contents = [d for m in modules for d in (m._parameters, m._buffers, m._modules) if d]
        self._then = [dict(d) for d in self._contents]
        values = list(chain.from_iterable(map(dict.values, self._contents)))
        # Of these, equality below says nothing about identity.
        self._single = [d for d in self._contents if any(isinstance(t, Tensor) and t.numel() == 1 for t in d.values())]
        self._tensors = [value for value in values if isinstance(value, Tensor)]
        self._children = [value for value in values if isinstance(value, nn.Module)]
        self._hooks = [d for m in modules for d in (m._forward_hooks, m._forward_pre_hooks)]
        # Not the model's own: a function put there may refer to the model.
        self._attributes = [vars(m) for m in modules if m is not model]
        self._places = [(vars(m), name) for m in modules for name in SCALARS.get(type(m), ())]
        self._seen = self._look()

    def holds(self) -> bool:
        """Whether modules, their settings, and the places, types and sizes of all weights are those of then; the
        weights' values may have changed."""
        try:
            return self._contents == self._then and self._look() == self._seen
        except RuntimeError:  # two tensors in the same place have no truth together: one was replaced
            return False

    def _look(self) -> list:
        # Every step comes here: no loops of Python's own.
        return [
            list(map(Tensor.data_ptr, self._tensors)),
            list(map(_DTYPE, self._tensors)),
            # Dense, with as many numbers: no other shape would fit the modules around it. Shapes take twice the time.
            list(map(Tensor.numel, self._tensors)),
            all(map(Tensor.is_contiguous, self._tensors)),  # no program is built where one is not
            list(map(id, chain.from_iterable(map(dict.values, self._single)))),
            list(map(type, self._children)),
            any(self._hooks),
            list(map(len, self._attributes)),  # one more where a method is replaced
            [attributes.get(name) for attributes, name in self._places],
        ]


def strange(model: DecodingModel) -> str | None:
    """What in the model is not computed as its modules' types say; None where all is."""
    for module in model.modules():
        if module is not model and type(module) not in PLAIN:
            return f"the model has a {type(module).__name__}"
        replaced = any(callable(getattr(type(module), name, None)) for name in vars(module))
        if (replaced and module is not model) or module._forward_hooks or module._forward_pre_hooks:
            return f"a {type(module).__name__} of the model is hooked"
        if isinstance(module, nn.Embedding) and module.max_norm is not None:
            return "the model's embeddings have a max_norm"
        for name, tensor in chain(module._parameters.items(), module._buffers.items()):
            if tensor is None or type(tensor) not in (nn.Parameter, Tensor):
                return f"a weight of the model is a {type(tensor).__name__}"
            if tensor.dtype not in FLOATS and not isinstance(module, Linear | Experts):
                kind = str(tensor.dtype).removeprefix("torch.")
                return f"a {name} of the model's {type(module).__name__} modules is {kind}"
    return None
