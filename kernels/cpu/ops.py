"""The kernels as PyTorch functions; see nano3.kernels.ops for what each computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import c_float, c_int, c_int64, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..eager import FUNCTIONS as EAGER
from .native import TYPES, native

MOST_ROWS = 64
"""Products with more rows go to PyTorch, whose blocking pays from there on."""
DONE, BAD_INDEX = 0, 2
"""What a kernel returns; anything else: it had no memory."""
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
    function.argtypes, function.restype = SIGNATURES[name], I
    return function


def _run(name: str, *arguments: Any) -> bool:
    """Call a kernel; False when it had no memory for its buffers and did nothing.

    Raises:
        IndexError: an index out of range.
    """
    outcome = kernel(name)(*arguments, torch.get_num_threads())
    if outcome == BAD_INDEX:
        raise IndexError(f"{name}: an index is out of range")
    return outcome == DONE


def _plain(*tensors: Tensor) -> bool:
    """Whether all are what the kernels read: float32 or bfloat16, on CPU, contiguous, without a gradient to come."""
    grads = torch.is_grad_enabled()
    return all(
        t.dtype in TYPES and t.device.type == "cpu" and t.is_contiguous() and not (grads and t.requires_grad)
        for t in tensors
    )


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """See nano3.kernels.linear."""
    outputs, width = weight.shape
    rows = x.numel() // width if width else 0
    if not 0 < rows <= MOST_ROWS or x.shape[-1] != width or not _plain(x, weight):
        return EAGER["linear"](x, weight)
    y = torch.empty(*x.shape[:-1], outputs, dtype=x.dtype)
    done = _run(
        "linear", x.data_ptr(), TYPES[x.dtype], rows, weight.data_ptr(), TYPES[weight.dtype], outputs, width,
        y.data_ptr(), TYPES[y.dtype],
    )  # fmt: skip
    return y if done else EAGER["linear"](x, weight)


def squared_relu_mlp(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """See nano3.kernels.squared_relu_mlp."""
    hidden, width = up.shape
    rows = x.numel() // width if width else 0
    fits = 0 < rows <= MOST_ROWS and x.shape[-1] == width and down.shape == (width, hidden) and up.dtype == down.dtype
    if not fits or not _plain(x, up, down):
        return EAGER["squared_relu_mlp"](x, up, down)
    y = torch.empty_like(x)
    done = _run(
        "squared_relu_mlp", x.data_ptr(), TYPES[x.dtype], rows, up.data_ptr(), down.data_ptr(), TYPES[up.dtype],
        hidden, width, y.data_ptr(), TYPES[y.dtype],
    )  # fmt: skip
    return y if done else EAGER["squared_relu_mlp"](x, up, down)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See nano3.kernels.rms_norm."""
    width = x.shape[-1]
    if not x.numel() or weight.shape != (width,) or not _plain(x, weight):
        return EAGER["rms_norm"](x, weight, eps)
    y = torch.empty_like(x)
    done = _run(
        "rms_norm", x.data_ptr(), TYPES[x.dtype], weight.data_ptr(), TYPES[weight.dtype], x.numel() // width, width,
        eps, y.data_ptr(),
    )  # fmt: skip
    return y if done else EAGER["rms_norm"](x, weight, eps)


def grouped_mlp(x: Tensor, up: Tensor, down: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
    """See nano3.kernels.grouped_mlp."""
    tokens, chosen = expert_ids.shape
    n_experts, hidden, width = up.shape
    fits = 0 < tokens <= MOST_ROWS and chosen and up.dtype == down.dtype and weights.dtype == torch.float32
    fits = fits and x.shape == (tokens, width) and down.shape == (n_experts, width, hidden)
    fits = fits and weights.shape == expert_ids.shape
    if not fits or not _plain(x, up, down, weights):
        return EAGER["grouped_mlp"](x, up, down, expert_ids, weights)
    y, expert_ids = torch.empty_like(x), expert_ids.contiguous()
    done = _run(
        "grouped_mlp", x.data_ptr(), TYPES[x.dtype], up.data_ptr(), down.data_ptr(), TYPES[up.dtype],
        expert_ids.data_ptr(), weights.data_ptr(), tokens, chosen, n_experts, hidden, width, y.data_ptr(),
    )  # fmt: skip
    return y if done else EAGER["grouped_mlp"](x, up, down, expert_ids, weights)


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
    everything = (
        xBC, dt, z, conv_state, ssm_state, slots, conv_weight, conv_bias, A_log, D, dt_bias, norm_weight, eps, n_groups,
    )  # fmt: skip
    if not _step_fits(*everything):
        return EAGER["mamba_step"](*everything)
    _, H, P_, N = ssm_state.shape
    y = torch.empty(z.shape, dtype=z.dtype)
    done = _run(
        "mamba_step", xBC.data_ptr(), dt.data_ptr(), z.data_ptr(), TYPES[xBC.dtype], xBC.stride(0), dt.stride(0),
        z.stride(0), conv_state.data_ptr(), ssm_state.data_ptr(), slots.data_ptr(), xBC.shape[0], H, P_, N, n_groups,
        conv_weight.shape[1], conv_weight.data_ptr(), conv_bias.data_ptr(), norm_weight.data_ptr(),
        TYPES[conv_weight.dtype], A_log.data_ptr(), D.data_ptr(), dt_bias.data_ptr(), eps, y.data_ptr(),
    )  # fmt: skip
    return y if done else EAGER["mamba_step"](*everything)


def _step_fits(
    xBC, dt, z, conv_state, ssm_state, slots, conv_weight, conv_bias, A_log, D, dt_bias, norm_weight, _eps, n_groups
) -> bool:
    """Whether sizes, types and layouts are those that the kernel takes for granted."""
    rows, weights, steps = (xBC, dt, z), (conv_weight, conv_bias, norm_weight), (A_log, D, dt_bias)
    n, (_, H, width, N) = xBC.shape[0], ssm_state.shape
    channels, inner = H * width + 2 * n_groups * N, H * width
    sizes = n > 0 and H % n_groups == 0 and all(t.shape == (H,) for t in steps) and norm_weight.shape == (inner,)
    sizes = sizes and xBC.shape == (n, channels) and dt.shape == (n, H) and z.shape == (n, inner)
    sizes = sizes and slots.shape == (n,) and slots.dtype == torch.int64 and conv_bias.shape == (channels,)
    sizes = sizes and conv_weight.shape[0] == channels and conv_state.shape[1:] == (channels, conv_weight.shape[1] - 1)
    types = all(t.dtype == xBC.dtype for t in (*rows, conv_state)) and all(t.stride(-1) == 1 for t in rows)
    types = types and all(t.dtype == conv_weight.dtype for t in weights)
    types = types and all(t.dtype == torch.float32 for t in (ssm_state, *steps))
    return sizes and types and _plain(conv_state, ssm_state, *weights, *steps) and xBC.dtype in TYPES


def paged_attention(
    q: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
) -> Tensor:
    """See nano3.kernels.paged_attention."""
    single = bool(query_lengths) and max(query_lengths) == min(query_lengths) == 1 and min(key_lengths) > 0
    single = single and key_pages.shape == value_pages.shape and key_pages.shape[3] == q.shape[2]
    if not single or q.dtype != key_pages.dtype or not _plain(q, key_pages, value_pages):
        return EAGER["paged_attention"](q, key_pages, value_pages, page_table, query_lengths, key_lengths)
    y, lengths, page_table = torch.empty_like(q), torch.tensor(key_lengths), page_table.contiguous()
    heads, width = key_pages.shape[2], q.shape[2]
    done = _run(
        "paged_attention", q.data_ptr(), key_pages.data_ptr(), value_pages.data_ptr(), TYPES[q.dtype],
        page_table.data_ptr(), page_table.shape[1], lengths.data_ptr(), q.shape[0], heads, q.shape[1] // heads, width,
        key_pages.shape[1], y.data_ptr(),
    )  # fmt: skip
    if not done:
        return EAGER["paged_attention"](q, key_pages, value_pages, page_table, query_lengths, key_lengths)
    return y


FUNCTIONS: dict[str, Callable] = {
    "linear": linear,
    "squared_relu_mlp": squared_relu_mlp,
    "rms_norm": rms_norm,
    "grouped_mlp": grouped_mlp,
    "mamba_step": mamba_step,
    "paged_attention": paged_attention,
}
