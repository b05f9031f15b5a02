"""One token through a Mamba-2 block's sequence mixing: in place where the slots are neighbours, else on copies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference.conv import causal_conv1d_step
from ..reference.mamba import PADDING, check_slots, stepwise
from .norm import gated_rms_norm
from .ssd import ssd_step

_OPS = (causal_conv1d_step, ssd_step, gated_rms_norm)


def mamba_step(
    xBC: Tensor, dt: Tensor, z: Tensor, conv_state: Tensor, ssm_state: Tensor, slots: Tensor, *weights: Any
) -> Tensor:
    """See nano3.kernels.mamba_step."""
    rows: slice | Tensor = slots
    check_slots(slots, conv_state, ssm_state)
    if slots.device.type != "cpu":
        return _padded(xBC, dt, z, conv_state, ssm_state, slots, *weights)
    if slots.numel():
        numbers = slots.tolist()
        if PADDING in numbers:
            return _padded(xBC, dt, z, conv_state, ssm_state, slots, *weights)
        if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
            rows = slice(numbers[0], numbers[0] + len(numbers))
    return stepwise(*_OPS, xBC, dt, z, conv_state, ssm_state, rows, *weights)


def _padded(
    xBC: Tensor, dt: Tensor, z: Tensor, conv_state: Tensor, ssm_state: Tensor, slots: Tensor, *weights: Any
) -> Tensor:
    """Where some slots may be padding, whichever: a row of padding writes again what the first real one writes."""
    real, places = slots != PADDING, slots.clamp(min=0)
    conv_rows, ssm_rows = conv_state[places], ssm_state[places]
    y = stepwise(*_OPS, xBC, dt, z, conv_rows, ssm_rows, slice(None), *weights)
    rows = torch.where(real, torch.arange(len(slots), device=slots.device), real.int().argmax(0))
    targets, any_real = places[rows], real.any()
    for state, new in ((conv_state, conv_rows), (ssm_state, ssm_rows)):
        state.index_copy_(0, targets, torch.where(any_real, new[rows], state[targets]))
    return y.masked_fill_(~real.unsqueeze(1), 0)
