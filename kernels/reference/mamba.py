"""One token through a Mamba-2 block's sequence mixing (arXiv 2405.21060), on slots of many sequences."""

from __future__ import annotations

import torch
from torch import Tensor

from ..common import accumulator
from .conv import causal_conv1d_step
from .norm import gated_rms_norm
from .ssd import ssd_step

PADDING = -1
"""Slot of a row that is computed for nothing."""


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
    check_slots(slots, conv_state, ssm_state)
    rows, out = slots != PADDING, torch.zeros_like(z)
    out[rows] = stepwise(
        causal_conv1d_step, ssd_step, gated_rms_norm, xBC[rows], dt[rows], z[rows], conv_state, ssm_state, slots[rows],
        conv_weight, conv_bias, A_log, D, dt_bias, norm_weight, eps, n_groups,
    )  # fmt: skip
    return out


def check_slots(slots: Tensor, *states: Tensor) -> None:
    """IndexError for a slot that a state lacks; on other devices than CPUs PyTorch's own indexing finds it."""
    if type(slots) is not Tensor or slots.device.type != "cpu" or not slots.numel():
        return
    if int(slots.min()) < PADDING or int(slots.max()) >= min(len(state) for state in states):
        raise IndexError(f"mamba_step: slots {slots.tolist()} of {[len(state) for state in states]}")


def stepwise(
    conv, scan, norm, xBC, dt, z, conv_state, ssm_state, slots, conv_weight, conv_bias, A_log, D, dt_bias, norm_weight,
    eps, n_groups,
) -> Tensor:  # fmt: skip
    """The step in terms of three other ops."""
    _, H, P, N = ssm_state.shape
    conv_rows, ssm_rows = conv_state[slots], ssm_state[slots]
    mixed = conv(xBC, conv_rows, conv_weight, conv_bias)
    x, B, C = mixed.split([H * P, n_groups * N, n_groups * N], dim=-1)
    A = -A_log.to(accumulator(A_log.dtype)).exp()
    B, C = B.unflatten(-1, (n_groups, N)), C.unflatten(-1, (n_groups, N))
    y = scan(ssm_rows, x.unflatten(-1, (H, P)), dt, A, B, C, D, dt_bias)
    if not isinstance(slots, slice):  # a slice gave views, advanced in place already
        conv_state[slots], ssm_state[slots] = conv_rows, ssm_rows
    return norm(y.flatten(-2), z, norm_weight, eps, n_groups)
