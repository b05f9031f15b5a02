"""One decoding step of a Mamba-2 block in C++."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..eager import FUNCTIONS as EAGER
from .call import F, I, Kernel, L, P, declare, empty, integers, normal, plain, run
from .native import TYPES

declare(mamba_step=(P, P, P, I, L, L, L, P, P, L, P, L, L, L, L, L, L, P, P, P, I, P, P, P, F, P))


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
    y = empty(z.shape, dtype=z.dtype)
    step = partial(
        run, "mamba_step", xBC.data_ptr(), dt.data_ptr(), z.data_ptr(), TYPES[xBC.dtype], xBC.stride(0), dt.stride(0),
        z.stride(0), conv_state.data_ptr(), ssm_state.data_ptr(), ssm_state.shape[0], slots.data_ptr(), xBC.shape[0], H,
        P_, N, n_groups, conv_weight.shape[1], conv_weight.data_ptr(), conv_bias.data_ptr(), norm_weight.data_ptr(),
        TYPES[conv_weight.dtype], A_log.data_ptr(), D.data_ptr(), dt_bias.data_ptr(), eps, y.data_ptr(),
    )  # fmt: skip
    try:
        done = step()
    except IndexError:  # perhaps only a row of padding, which the kernel does not know
        done = False
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
    sizes = sizes and slots.shape == (n,) and slots.dtype == torch.int64 and slots.is_contiguous()
    sizes = sizes and slots.device.type == "cpu" and conv_state.shape[0] == ssm_state.shape[0]
    sizes = (
        sizes
        and conv_bias.shape == (channels,)
        and conv_weight.shape[0] == channels
        and conv_state.shape[1:] == (channels, conv_weight.shape[1] - 1)
    )
    types = all(t.dtype == xBC.dtype for t in (*rows, conv_state)) and all(t.stride(-1) == 1 for t in rows)
    types = types and all(t.dtype == conv_weight.dtype for t in weights)
    types = types and all(t.dtype == torch.float32 for t in (ssm_state, *steps))
    return sizes and types and plain(conv_state, ssm_state, *weights, *steps) and xBC.dtype in TYPES


def _mamba(g: torch.Generator, dtype: torch.dtype) -> tuple:
    B, H, P, N, G, W, slots = 3, 4, 5, 19, 2, 4, 5
    C = H * P + 2 * G * N
    rows = normal(g, dtype, B, C), normal(g, dtype, B, H), normal(g, dtype, B, H * P)
    states = normal(g, dtype, slots, C, W - 1), normal(g, torch.float32, slots, H, P, N)
    heads = (normal(g, torch.float32, H) for _ in range(3))
    return (
        *rows, *states, integers([3, 0, 4]), normal(g, dtype, C, W), normal(g, dtype, C), *heads,
        normal(g, dtype, H * P), 1e-5, G,
    )  # fmt: skip


KERNELS = {"mamba_step": Kernel(mamba_step, "decoding", _mamba)}
