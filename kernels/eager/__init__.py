"""Eager backend: the fast PyTorch formulation of each op, forward and backward, on CPU and CUDA."""

from collections.abc import Callable
from functools import wraps

import torch

from ..reference import FUNCTIONS as REFERENCE
from ..reference.best import best_tokens
from ..reference.conv import causal_conv1d_step
from . import attention, conv, experts, grouped, log_probs, loss, mamba, norm, paged, route, ssd


def _transformable(op: str, function: Callable) -> Callable:
    """`function`, which has a backward pass of its own, where torch.func is not at work: it takes none of that kind, so
    gets the reference."""
    plain = REFERENCE[op]

    @wraps(function)
    def call(*arguments, **options):
        return (plain if torch._C._are_functorch_transforms_active() else function)(*arguments, **options)

    return call


_WITH_BACKWARD: dict[str, Callable] = {
    "rms_norm": norm.rms_norm,
    "gated_rms_norm": norm.gated_rms_norm,
    "causal_conv1d": conv.causal_conv1d,
    "ssd_scan": ssd.ssd_scan,
    "grouped_mlp": grouped.grouped_mlp,
    "squared_relu_mlp": experts.squared_relu_mlp,
    "linear_cross_entropy": loss.linear_cross_entropy,
    "log_probs": log_probs.log_probs,
}
FUNCTIONS: dict[str, Callable] = {
    "linear": experts.linear,
    "causal_conv1d_step": causal_conv1d_step,
    "ssd_step": ssd.ssd_step,
    "mamba_step": mamba.mamba_step,
    "attention": attention.attention,
    "paged_attention": paged.paged_attention,
    "paged_decode": paged.paged_decode,
    "route": route.route,
    "best_tokens": best_tokens,
    **{op: _transformable(op, function) for op, function in _WITH_BACKWARD.items()},
}

_PARTS = ("causal_conv1d_step", "ssd_step")


def about(op: str) -> str:
    """Why one would choose it, in a few words."""
    if op in _PARTS:
        return "PyTorch; a decoding model calls mamba_step, which holds it, and this op only without state slots"
    return "fused PyTorch, forward and backward"
