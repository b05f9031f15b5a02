"""mamba-ssm's Triton kernels (Mamba-2, arXiv 2405.21060): scan, decoding step, gated norm."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from .. import eager
from ..common import accumulator, segments
from ..reference.conv import causal_conv1d_step
from ..reference.mamba import check_slots
from .package import Functions, for_device, load, of_types, where, without_initialisation

SMALLEST_CHUNK, LARGEST_CHUNK = 16, 256
"""Chunk lengths that its kernels are written for; each a power of two."""

MODULES = (
    ("mamba_chunk_scan_combined", "ssd_combined"),
    ("selective_state_update", "selective_state_update"),
    ("rmsnorm_fn", "layernorm_gated"),
)
"""Its functions, and where they are defined."""


def _imports() -> dict[str, Callable]:
    # Its __init__ imports the CUDA kernels of Mamba-1, which a build without the CUDA compiler lacks.
    with without_initialisation("mamba_ssm"):
        return {name: getattr(import_module(f"mamba_ssm.ops.triton.{module}"), name) for name, module in MODULES}


@cache
def package() -> Functions:
    """What can be imported of mamba-ssm."""
    return load("mamba-ssm", _imports)


def unavailable(device: torch.device, _op: str) -> str | None:
    """Why mamba-ssm's kernels cannot run on `device`, None when they can."""
    return package().problem if for_device(device) else "mamba-ssm's kernels run on CUDA devices"


def about(op: str) -> str:
    """What runs, in a few words."""
    return {
        "ssd_scan": "mamba-ssm's mamba_chunk_scan_combined",
        "mamba_step": "mamba-ssm's selective_state_update and rmsnorm_fn",
        "gated_rms_norm": "mamba-ssm's rmsnorm_fn",
    }[op]


def _ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    *,
    initial_state: Tensor | None = None,
    document_ids: Tensor | None = None,
    chunk_size: int = 128,
) -> tuple[Tensor, Tensor]:
    """See nano3.kernels.ssd_scan."""
    chunk = 1 << (min(max(chunk_size, SMALLEST_CHUNK), LARGEST_CHUNK).bit_length() - 1)
    # running numbers, as an id may come back later in a row
    documents = None if document_ids is None else segments(document_ids).int()
    y, final = package().by_name["mamba_chunk_scan_combined"](
        x, dt, A, B.to(x.dtype), C.to(x.dtype), chunk, D=D, dt_bias=dt_bias, initial_states=initial_state,
        seq_idx=documents, dt_softplus=True, return_final_states=True,
    )  # fmt: skip
    return y, final.to(accumulator(x.dtype))


def _suits_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, *rest: Tensor, **options: Any) -> bool:
    return of_types(x, dt, A, B, *rest, options.get("initial_state")) and _power_of_two(B.shape[-1])


def _power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


def _gated_rms_norm(y: Tensor, z: Tensor, weight: Tensor, eps: float, n_groups: int) -> Tensor:
    """See nano3.kernels.gated_rms_norm."""
    options = {"z": z, "eps": eps, "group_size": y.shape[-1] // n_groups, "norm_before_gate": False}
    return package().by_name["rmsnorm_fn"](y, weight, None, **options)


def _suits_norm(y: Tensor, z: Tensor, weight: Tensor, _eps: float, n_groups: int) -> bool:
    return of_types(y, z, weight) and y.shape[-1] // n_groups * y.element_size() <= 65536  # one block of its kernel


def _mamba_step(
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
    """See nano3.kernels.mamba_step; the convolution is PyTorch's."""
    check_slots(slots, conv_state, ssm_state)
    _, H, P, N = ssm_state.shape
    conv_rows = conv_state[slots]
    mixed = causal_conv1d_step(xBC, conv_rows, conv_weight, conv_bias)
    conv_state[slots] = conv_rows
    x, B, C = mixed.split([H * P, n_groups * N, n_groups * N], dim=-1)
    A = -A_log.float().exp()
    # Numbers of a head are expanded without copies: strides of 0 are how its kernel knows them.
    y = package().by_name["selective_state_update"](
        ssm_state, x.unflatten(-1, (H, P)), dt[:, :, None].expand(-1, -1, P), A[:, None, None].expand(H, P, N),
        B.unflatten(-1, (n_groups, N)), C.unflatten(-1, (n_groups, N)), D=D[:, None].expand(H, P),
        dt_bias=dt_bias[:, None].expand(H, P), dt_softplus=True, state_batch_indices=slots.int(),
    )  # fmt: skip
    return _gated_rms_norm(y.flatten(-2), z, norm_weight, eps, n_groups)


def _suits_step(xBC: Tensor, dt: Tensor, z: Tensor, conv_state: Tensor, ssm_state: Tensor, *_: Any) -> bool:
    return of_types(xBC, dt, z, conv_state, ssm_state)


FUNCTIONS: dict[str, Callable] = {
    "ssd_scan": where(_suits_scan, _ssd_scan, eager.FUNCTIONS["ssd_scan"]),
    "mamba_step": where(_suits_step, _mamba_step, eager.FUNCTIONS["mamba_step"]),
    "gated_rms_norm": where(_suits_norm, _gated_rms_norm, eager.FUNCTIONS["gated_rms_norm"]),
}
