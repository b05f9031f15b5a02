"""The kernels as PyTorch functions; see nano3.kernels.ops for what each computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import c_float, c_int, c_int64, c_void_p
from functools import cache

import torch
from torch import Tensor

from ..eager import FUNCTIONS as EAGER
from .native import TYPES, native

MOST_ROWS = 64
"""Products with more rows go to PyTorch, whose blocking pays from there on."""
P, I, L, F = c_void_p, c_int, c_int64, c_float
SIGNATURES = {
    "linear": (P, I, L, P, I, L, L, P, I, I),
    "squared_relu_mlp": (P, I, L, P, P, I, L, L, P, I, I),
    "rms_norm": (P, I, P, I, L, L, F, P, I),
    "grouped_mlp": (P, I, P, P, I, P, P, L, L, L, L, L, P, I),
    "mamba_step": (P, P, P, I, L, L, L, P, P, P, L, L, L, L, L, L, P, P, P, I, P, P, P, F, P, I),
    "paged_attention": (P, P, P, I, P, L, P, L, L, L, L, L, P, I),
}
RANGE = {
    "linear": f"up to {MOST_ROWS} rows",
    "squared_relu_mlp": f"up to {MOST_ROWS} rows",
    "rms_norm": "inference",
    "grouped_mlp": f"up to {MOST_ROWS} tokens",
    "mamba_step": "decoding",
    "paged_attention": "decoding",
}


@cache
def kernel(name: str) -> Callable:
    """One C function with its argument types."""
    function = native().function(name)
    function.argtypes, function.restype = SIGNATURES[name], None
    return function


def _plain(*tensors: Tensor) -> bool:
    """Whether all are what the kernels read: float32 or bfloat16, on CPU, contiguous, without a gradient to come."""
    grads = torch.is_grad_enabled()
    return all(
        t.dtype in TYPES and t.device.type == "cpu" and t.is_contiguous() and not (grads and t.requires_grad)
        for t in tensors
    )


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """See nano3.kernels.linear."""
    width, outputs = weight.shape[1], weight.shape[0]
    rows = x.numel() // width if width else 0
    if not 0 < rows <= MOST_ROWS or not _plain(x, weight):
        return EAGER["linear"](x, weight)
    y = torch.empty(*x.shape[:-1], outputs, dtype=x.dtype)
    kernel("linear")(
        x.data_ptr(), TYPES[x.dtype], rows, weight.data_ptr(), TYPES[weight.dtype], outputs, width,
        y.data_ptr(), TYPES[y.dtype], torch.get_num_threads(),
    )  # fmt: skip
    return y


def squared_relu_mlp(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """See nano3.kernels.squared_relu_mlp."""
    hidden, width = up.shape
    rows = x.numel() // width if width else 0
    if not 0 < rows <= MOST_ROWS or up.dtype != down.dtype or not _plain(x, up, down):
        return EAGER["squared_relu_mlp"](x, up, down)
    y = torch.empty_like(x)
    kernel("squared_relu_mlp")(
        x.data_ptr(), TYPES[x.dtype], rows, up.data_ptr(), down.data_ptr(), TYPES[up.dtype], hidden, width,
        y.data_ptr(), TYPES[y.dtype], torch.get_num_threads(),
    )  # fmt: skip
    return y


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See nano3.kernels.rms_norm."""
    if not x.numel() or not _plain(x, weight):
        return EAGER["rms_norm"](x, weight, eps)
    y = torch.empty_like(x)
    width = x.shape[-1]
    kernel("rms_norm")(
        x.data_ptr(), TYPES[x.dtype], weight.data_ptr(), TYPES[weight.dtype], x.numel() // width, width, eps,
        y.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return y


def grouped_mlp(x: Tensor, up: Tensor, down: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
    """See nano3.kernels.grouped_mlp."""
    tokens, chosen = expert_ids.shape
    fits = 0 < tokens <= MOST_ROWS and up.dtype == down.dtype and weights.dtype == torch.float32
    if not fits or not _plain(x, up, down, weights):
        return EAGER["grouped_mlp"](x, up, down, expert_ids, weights)
    y, expert_ids = torch.empty_like(x), expert_ids.contiguous()
    kernel("grouped_mlp")(
        x.data_ptr(), TYPES[x.dtype], up.data_ptr(), down.data_ptr(), TYPES[up.dtype], expert_ids.data_ptr(),
        weights.data_ptr(), tokens, chosen, up.shape[0], up.shape[1], up.shape[2], y.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return y


def mamba_step(
    xBC: Tensor,
    dt: Tensor,
    z: Tensor,
    conv_state: Tensor,
    ssm_state: Tensor,
    slots: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    norm_weight: Tensor,
    eps: float,
    n_groups: int,
) -> Tensor:
    """See nano3.kernels.mamba_step."""
    rows, states = (xBC, dt, z), (conv_state, ssm_state)
    weights, steps = (conv_weight, conv_bias, norm_weight), (A_log, D, dt_bias)
    alike = all(t.dtype == xBC.dtype for t in (*rows, conv_state)) and all(t.stride(-1) == 1 for t in rows)
    alike &= all(t.dtype == conv_weight.dtype for t in weights) and all(t.dtype == torch.float32 for t in steps)
    if not xBC.shape[0] or not alike or ssm_state.dtype != torch.float32 or not _plain(*states, *weights, *steps):
        return EAGER["mamba_step"](
            xBC, dt, z, conv_state, ssm_state, slots,
            conv_weight, conv_bias, A_log, D, dt_bias, norm_weight, eps, n_groups,
        )  # fmt: skip
    _, H, P_, N = ssm_state.shape
    y = torch.empty(z.shape, dtype=z.dtype)
    kernel("mamba_step")(
        xBC.data_ptr(), dt.data_ptr(), z.data_ptr(), TYPES[xBC.dtype], xBC.stride(0), dt.stride(0), z.stride(0),
        conv_state.data_ptr(), ssm_state.data_ptr(), slots.data_ptr(), xBC.shape[0], H, P_, N, n_groups,
        conv_weight.shape[1], conv_weight.data_ptr(), conv_bias.data_ptr(), norm_weight.data_ptr(),
        TYPES[conv_weight.dtype], A_log.data_ptr(), D.data_ptr(), dt_bias.data_ptr(), eps, y.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return y


def paged_attention(
    q: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
) -> Tensor:
    """See nano3.kernels.paged_attention."""
    single = bool(query_lengths) and max(query_lengths) == min(query_lengths) == 1
    if not single or q.dtype != key_pages.dtype or not _plain(q, key_pages, value_pages):
        return EAGER["paged_attention"](q, key_pages, value_pages, page_table, query_lengths, key_lengths)
    y, lengths, page_table = torch.empty_like(q), torch.tensor(key_lengths), page_table.contiguous()
    heads, width = key_pages.shape[2], q.shape[2]
    kernel("paged_attention")(
        q.data_ptr(), key_pages.data_ptr(), value_pages.data_ptr(), TYPES[q.dtype], page_table.data_ptr(),
        page_table.shape[1], lengths.data_ptr(), q.shape[0], heads, q.shape[1] // heads, width, key_pages.shape[1],
        y.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return y


FUNCTIONS: dict[str, Callable] = {
    "linear": linear,
    "squared_relu_mlp": squared_relu_mlp,
    "rms_norm": rms_norm,
    "grouped_mlp": grouped_mlp,
    "mamba_step": mamba_step,
    "paged_attention": paged_attention,
}
