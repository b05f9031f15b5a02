"""One token through a Mamba-2 block's sequence mixing: in place where the slots are neighbours, else on copies."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..reference.conv import causal_conv1d_step
from ..reference.mamba import check_slots, stepwise
from .norm import gated_rms_norm
from .ssd import ssd_step


def mamba_step(
    xBC: Tensor, dt: Tensor, z: Tensor, conv_state: Tensor, ssm_state: Tensor, slots: Tensor, *weights: Any
) -> Tensor:
    """See nano3.kernels.mamba_step."""
    rows: slice | Tensor = slots
    check_slots(slots, conv_state, ssm_state)
    if slots.device.type == "cpu" and slots.numel():
        numbers = slots.tolist()
        if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
            rows = slice(numbers[0], numbers[0] + len(numbers))
    ops = (causal_conv1d_step, ssd_step, gated_rms_norm)
    return stepwise(*ops, xBC, dt, z, conv_state, ssm_state, rows, *weights)
