"""Eager backend: the fast PyTorch formulation of each op, forward and backward, on CPU and CUDA."""

from collections.abc import Callable

from ..reference.best import best_tokens
from ..reference.conv import causal_conv1d_step
from . import attention, conv, experts, grouped, log_probs, loss, mamba, norm, paged, route, ssd

FUNCTIONS: dict[str, Callable] = {
    "linear": experts.linear,
    "rms_norm": norm.rms_norm,
    "gated_rms_norm": norm.gated_rms_norm,
    "causal_conv1d": conv.causal_conv1d,
    "causal_conv1d_step": causal_conv1d_step,
    "ssd_scan": ssd.ssd_scan,
    "ssd_step": ssd.ssd_step,
    "mamba_step": mamba.mamba_step,
    "attention": attention.attention,
    "paged_attention": paged.paged_attention,
    "route": route.route,
    "grouped_mlp": grouped.grouped_mlp,
    "squared_relu_mlp": experts.squared_relu_mlp,
    "linear_cross_entropy": loss.linear_cross_entropy,
    "best_tokens": best_tokens,
    "log_probs": log_probs.log_probs,
}

_PARTS = ("causal_conv1d_step", "ssd_step")


def about(op: str) -> str:
    """Why one would choose it, in a few words."""
    if op in _PARTS:
        return "PyTorch; a decoding model calls mamba_step, which holds it, and this op only without state slots"
    return "fused PyTorch, forward and backward"
