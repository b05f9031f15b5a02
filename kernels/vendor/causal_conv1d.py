"""causal-conv1d's CUDA kernels: the short convolution of Mamba-2 (arXiv 2405.21060), whole sequences and one token."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from .. import eager
from ..common import segments
from ..eager.conv import final_state, past_inputs
from .package import Functions, load, of_types, where

WIDTHS = (2, 3, 4)
"""Widths of the filter that its kernels have."""
ALIGNMENT = 8
"""Channels and strides must be multiples of this many elements."""


def _imports() -> dict[str, Callable]:
    module = import_module("causal_conv1d")
    return {name: getattr(module, name) for name in ("causal_conv1d_fn", "causal_conv1d_update")}


@cache
def package() -> Functions:
    """What can be imported of causal-conv1d."""
    return load("causal-conv1d", _imports)


def unavailable(device: torch.device, _op: str) -> str | None:
    """Why causal-conv1d's kernels cannot run on `device`, None when they can."""
    return package().problem if device.type == "cuda" else "causal-conv1d's kernels run on CUDA devices"


def about(op: str) -> str:
    """What runs, in a few words."""
    return f"causal-conv1d's {'causal_conv1d_update' if op == 'causal_conv1d_step' else 'causal_conv1d_fn'}"


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    initial_state: Tensor | None = None,
    document_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See nano3.kernels.causal_conv1d.

    The final state is made here: the package gives none together with documents.
    """
    past = past_inputs(x, weight.shape[1], initial_state)
    channels_last = x if _aligned(x) else x.contiguous()
    documents = None if document_ids is None else segments(document_ids).int()
    # its layout is (B, C, T), with channels last in memory where there are documents or a state
    y = package().by_name["causal_conv1d_fn"](
        channels_last.transpose(1, 2), weight.contiguous(), bias.to(weight.dtype), seq_idx=documents,
        initial_states=None if initial_state is None else past.transpose(1, 2), activation="silu",
    )  # fmt: skip
    return y.transpose(1, 2), final_state(x, past, document_ids)


def _aligned(x: Tensor) -> bool:
    return x.stride(2) == 1 and not any(stride % ALIGNMENT for stride in x.stride()[:2])


def _suits(x: Tensor, weight: Tensor, bias: Tensor, **options: Any) -> bool:
    state, documents = options.get("initial_state"), options.get("document_ids")
    if state is not None and documents is not None:  # releases before 1.7 refuse them together
        return False
    return of_types(x, weight, bias, state) and weight.shape[1] in WIDTHS and x.shape[2] % ALIGNMENT == 0


def conv_step(x: Tensor, state: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """See nano3.kernels.causal_conv1d_step."""
    return package().by_name["causal_conv1d_update"](
        x, state, weight.contiguous(), bias.to(weight.dtype), activation="silu"
    )


def _suits_step(x: Tensor, state: Tensor, weight: Tensor, bias: Tensor) -> bool:
    return of_types(x, state, weight, bias) and state.dtype == x.dtype and weight.shape[1] in WIDTHS


FUNCTIONS: dict[str, Callable] = {
    "causal_conv1d": where(_suits, conv, eager.FUNCTIONS["causal_conv1d"]),
    "causal_conv1d_step": where(_suits_step, conv_step, eager.FUNCTIONS["causal_conv1d_step"]),
}
