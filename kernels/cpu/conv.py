"""Causal convolution and SiLU in C++, forward and backward, on channels-last views."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..eager import FUNCTIONS as EAGER
from ..eager.conv import final_state, past_inputs
from .call import I, Kernel, L, P, declare, empty, normal, run
from .native import TYPES

MOST_TAPS = 16
"""As in src/conv.inl."""
_INPUT = (I, L, L, L, L, P, P, L, L, P, P, P)
declare(
    causal_conv1d=(*_INPUT, P),
    causal_conv1d_backward=(*_INPUT, P, L, L, P, L, L, P, P, P),
)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    initial_state: Tensor | None = None,
    document_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See nano3.kernels.causal_conv1d."""
    if not _fits(x, weight, bias, initial_state, document_ids):
        return EAGER["causal_conv1d"](x, weight, bias, initial_state=initial_state, document_ids=document_ids)
    past = past_inputs(x, weight.shape[1], initial_state)
    ids = None if document_ids is None else document_ids.to(torch.int64).contiguous()
    return _Conv.apply(x, weight, bias, past, ids), final_state(x, past, document_ids)


def _fits(x: Tensor, weight: Tensor, bias: Tensor, initial_state: Tensor | None, document_ids: Tensor | None) -> bool:
    (B, _, C), W = x.shape, weight.shape[-1]
    parts = [t for t in (x, weight, bias, initial_state, document_ids) if t is not None]
    return (
        x.numel() > 0
        and all(t.dtype in TYPES for t in (x, weight, bias))
        and all(t.device.type == "cpu" for t in parts)
        and 1 <= W <= MOST_TAPS
        and weight.shape == (C, W)
        and bias.shape == (C,)
        and (initial_state is None or initial_state.shape == (B, C, W - 1))
        and (document_ids is None or not document_ids.is_floating_point())
    )


def _dense_channels(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _inputs(x: Tensor, taps: Tensor, bias: Tensor, past: Tensor, ids: Tensor | None) -> tuple:
    """The arguments that both directions share."""
    B, T, C = x.shape
    return (
        TYPES[x.dtype], B, T, C, taps.shape[0], x.data_ptr(), past.data_ptr(), x.stride(0), x.stride(1),
        None if ids is None else ids.data_ptr(), taps.data_ptr(), bias.data_ptr(),
    )  # fmt: skip


def _taps(weight: Tensor) -> Tensor:
    """(C, W) -> (W, C) as the kernel reads them."""
    return weight.t().float().contiguous()


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, past: Tensor, ids: Tensor | None) -> Tensor:
        x, past, out = _dense_channels(x), past.contiguous(), empty(x.shape, dtype=x.dtype)
        taps, offset = _taps(weight), bias.float().contiguous()
        run("causal_conv1d", *_inputs(x, taps, offset, past, ids), out.data_ptr())
        ctx.save_for_backward(x, weight, bias, past, ids)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor):
        x, weight, bias, past, ids = ctx.saved_tensors
        dout, taps, offset = _dense_channels(dout), _taps(weight), bias.float().contiguous()
        dx, dpast = empty(x.shape, dtype=x.dtype), torch.empty_like(past)
        dtaps, doffset = torch.empty_like(taps), torch.empty_like(offset)
        done = run(
            "causal_conv1d_backward", *_inputs(x, taps, offset, past, ids), dout.data_ptr(), dout.stride(0),
            dout.stride(1), dx.data_ptr(), dx.stride(0), dx.stride(1), dpast.data_ptr(), dtaps.data_ptr(),
            doffset.data_ptr(),
        )  # fmt: skip
        if not done:
            raise MemoryError("causal_conv1d: no memory for a few rows of gradients a thread")
        return dx, dtaps.t().to(weight.dtype), doffset.to(bias.dtype), dpast, None


def _case(g: torch.Generator, dtype: torch.dtype) -> tuple:
    return normal(g, dtype, 2, 39, 35), normal(g, dtype, 35, 4), normal(g, dtype, 35)


KERNELS = {
    "causal_conv1d": Kernel(causal_conv1d, f"float32 and bfloat16, up to {MOST_TAPS} taps", _case, differentiable=True),
}
