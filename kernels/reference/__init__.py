"""Reference backend: each op in plain PyTorch as the papers write it; any dtype, slow, the spec of the others."""

from collections.abc import Callable

from . import attention, best, conv, experts, loss, mamba, norm, paged, route, ssd

FUNCTIONS: dict[str, Callable] = {
    "linear": experts.linear,
    "rms_norm": norm.rms_norm,
    "gated_rms_norm": norm.gated_rms_norm,
    "causal_conv1d": conv.causal_conv1d,
    "causal_conv1d_step": conv.causal_conv1d_step,
    "ssd_scan": ssd.ssd_scan,
    "ssd_step": ssd.ssd_step,
    "mamba_step": mamba.mamba_step,
    "attention": attention.attention,
    "paged_attention": paged.paged_attention,
    "paged_decode": paged.paged_decode,
    "route": route.route,
    "grouped_mlp": experts.grouped_mlp,
    "squared_relu_mlp": experts.squared_relu_mlp,
    "linear_cross_entropy": loss.linear_cross_entropy,
    "best_tokens": best.best_tokens,
    "log_probs": loss.log_probs,
}
