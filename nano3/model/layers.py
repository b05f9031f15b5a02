"""The two small layers that every block uses: bias-free linear and RMSNorm."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nano3.kernels import Scaled, Weight, linear, rms_norm
from nano3.kernels.scaled import INT4


class Linear(nn.Module):
    """`y = x @ weight.T`, weight (out, in) cast to the dtype of `x`; no bias (report section 2.1).

    `forward` is the only way in: a module that wraps or replaces a Linear (an adapter, a sharded one) is called by
    every part of nano3. Ops that fuse the product with something else ask `bare_weight`.

    A quantized one (`use_scaled`) holds its stored numbers in `weight`, which takes no gradient, and buffers
    `weight_scale` and perhaps `input_scale`, as checkpoints name them.
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        return linear(x, self.operand())

    def operand(self) -> Weight:
        """What ops multiply by: the weight (out, in), with its scales where it is quantized."""
        return scaled(self.weight, self._buffers, "weight_scale", "input_scale")

    def use_scaled(self, weight: Scaled) -> None:
        """Multiply by this weight (out, in) from now on.

        Raises:
            ValueError: it has another shape, or a scale that is not finite and above 0 (4 bits: not finite).
        """
        hold_scaled(self, "weight", weight, "weight_scale", "input_scale")


def scaled(weight: Tensor, buffers: Mapping[str, Tensor | None], scale: str, input_scale: str) -> Weight:
    """A parameter with the scales among a module's buffers, by name; the parameter itself where there are none.

    Of input scales that differ between experts the largest counts for all, as for other programs that read such files.
    """
    if not buffers or (own := buffers.get(scale)) is None:
        return weight
    given = buffers.get(input_scale)
    return Scaled(weight, own, given.amax() if given is not None and given.dim() else given)


def hold_scaled(module: nn.Module, name: str, weight: Scaled, scale: str, input_scale: str) -> None:
    """Put a scaled weight in the place of a module's parameter `name`, its scales into buffers of these names.

    Raises:
        ValueError: it has another shape, or a scale that is not finite and above 0 (4 bits: not finite).
    """
    shape = module.get_parameter(name).shape
    if weight.shape != shape:
        raise ValueError(f"a scaled weight of {tuple(weight.shape)} for {name} of {tuple(shape)}")
    for what, value in (("scale", weight.scale), ("input_scale", weight.input_scale)):
        if value is None or value.is_meta:
            continue
        signed = weight.dtype == INT4  # the sign of a group's largest number
        if not bool((value.isfinite() if signed else (value > 0) & value.isfinite()).all()):
            rule = "finite" if signed else "finite and above 0"
            raise ValueError(f"a scaled weight for {name} has {what} {value.tolist()}; scales are {rule}")
    setattr(module, name, nn.Parameter(weight.data, requires_grad=False))
    for buffer, value in ((scale, weight.scale), (input_scale, weight.input_scale)):
        module._buffers.pop(buffer, None)
        if value is not None:
            module.register_buffer(buffer, value.clone())  # one tensor in two places would be listed once


def bare_weight(module: nn.Module) -> Weight | None:
    """What a Linear multiplies by, for ops that do more than its product; None where the module computes anything
    else, or has hooks, and must be called."""
    own = module.__dict__  # at once: attributes of modules take half a microsecond each
    if type(module) is not Linear or "forward" in own or any(map(own.__getitem__, _HOOKS)):
        return None
    weight = own["_parameters"].get("weight")
    return module.operand() if own["_buffers"] else weight


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x (..., width) -> same shape and dtype."""
        return rms_norm(x, self.weight, self.eps)
