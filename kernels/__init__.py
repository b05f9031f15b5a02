"""Compute kernels of nano3: one public function an op, several backends behind it (see dispatch)."""

from .dispatch import backends, choose, explain
from .ops import (
    best_tokens,
    gated_rms_norm,
    grouped_mlp,
    linear,
    linear_cross_entropy,
    log_probs,
    rms_norm,
    route,
    squared_relu_mlp,
)
from .scaled import Scaled, Weight, quantize_e4m3, quantize_int4, quantize_int8
from .sequence_ops import (
    attention,
    causal_conv1d,
    causal_conv1d_step,
    mamba_step,
    paged_attention,
    paged_decode,
    ssd_scan,
    ssd_step,
)

__all__ = [
    "Scaled",
    "Weight",
    "attention",
    "backends",
    "best_tokens",
    "causal_conv1d",
    "causal_conv1d_step",
    "choose",
    "explain",
    "gated_rms_norm",
    "grouped_mlp",
    "linear",
    "linear_cross_entropy",
    "log_probs",
    "mamba_step",
    "paged_attention",
    "paged_decode",
    "quantize_e4m3",
    "quantize_int4",
    "quantize_int8",
    "rms_norm",
    "route",
    "squared_relu_mlp",
    "ssd_scan",
    "ssd_step",
]
