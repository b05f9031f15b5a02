"""Causal depthwise convolution and SiLU in one pass over cache-sized blocks of time, channels last throughout."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..common import accumulator, row_blocks, segments


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    initial_state: Tensor | None = None,
    document_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See nano3.kernels.causal_conv1d."""
    past = past_inputs(x, weight.shape[1], initial_state)
    masks = None if document_ids is None else _tap_masks(segments(document_ids), weight.shape[1], accumulator(x.dtype))
    out = _Conv.apply(x, weight, bias, past, masks)
    return out, final_state(x, past, document_ids)


def past_inputs(x: Tensor, width: int, initial_state: Tensor | None) -> Tensor:
    """The W-1 inputs before t = 0 as (B, W-1, C)."""
    if initial_state is None:
        return x.new_zeros(x.shape[0], width - 1, x.shape[2])
    return initial_state.transpose(1, 2).to(x.dtype)


def _tap_masks(segment: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """(W, B, T, 1): 1 where the tap reads the token's own document; what precedes the row is the first document's."""
    padded, T = F.pad(segment, (width - 1, 0)), segment.shape[1]
    return torch.stack([padded[:, tap : tap + T] == segment for tap in range(width)]).to(dtype).unsqueeze(-1)


def final_state(x: Tensor, past: Tensor, document_ids: Tensor | None) -> Tensor:
    """(B, C, W-1) last inputs, zero where they belong to an earlier document."""
    n_past, T = past.shape[1], x.shape[1]
    last = torch.cat([past[:, min(T, n_past) :], x[:, max(0, T - n_past) :]], dim=1)
    if document_ids is not None:
        segment = F.pad(segments(document_ids), (n_past, 0))[:, T:]
        last = last * (segment == segment[:, -1:]).unsqueeze(-1)
    return last.transpose(1, 2).contiguous()


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, past: Tensor, masks: Tensor | None) -> Tensor:
        wide = accumulator(x.dtype)
        taps, offset = weight.t().to(wide).contiguous(), bias.to(wide)
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        for part in _blocks(x):
            total = _convolve(_window(x, past, part), taps, offset, masks, part)
            out[:, part] = F.silu(total, inplace=True)
        ctx.save_for_backward(x, weight, bias, past, masks)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor):
        x, weight, bias, past, masks = ctx.saved_tensors
        wide, n_past, T = accumulator(x.dtype), past.shape[1], x.shape[1]
        taps, offset = weight.t().to(wide).contiguous(), bias.to(wide)
        dpadded = torch.zeros(x.shape[0], n_past + T, x.shape[2], dtype=wide, device=x.device)
        dtaps, doffset = torch.zeros_like(taps), torch.zeros_like(offset)
        for part in _blocks(x):
            window = _window(x, past, part)
            total = _convolve(window, taps, offset, masks, part)
            dtotal = torch.ops.aten.silu_backward(dout[:, part].to(wide), total)
            doffset += dtotal.sum((0, 1))
            _add_tap_grads(window, dtotal, taps, masks, part, dtaps, dpadded)
        dweight, dbias = dtaps.t().to(weight.dtype), doffset.to(bias.dtype)
        return dpadded[:, n_past:].to(x.dtype), dweight, dbias, dpadded[:, :n_past].to(past.dtype), None


def _blocks(x: Tensor):
    return row_blocks(x.shape[1], x.shape[0] * x.shape[2] * 4, x.device)


def _window(x: Tensor, past: Tensor, part: slice) -> Tensor:
    """Inputs that the outputs of `part` read: (B, W-1 + length, C)."""
    start = part.start - past.shape[1]
    window = x[:, max(start, 0) : part.stop]
    if start < 0:
        window = torch.cat([past[:, part.start :], window], dim=1)
    return window.to(accumulator(x.dtype))


def _convolve(window: Tensor, taps: Tensor, bias: Tensor, masks: Tensor | None, part: slice) -> Tensor:
    width, length = taps.shape[0], part.stop - part.start
    total = torch.addcmul(bias, window[:, width - 1 :], taps[-1])
    for tap in range(width - 1):
        source = window[:, tap : tap + length]
        total.addcmul_(source if masks is None else source * masks[tap, :, part], taps[tap])
    return total


def _add_tap_grads(window, dtotal, taps, masks, part, dtaps, dpadded) -> None:
    """Add one block's gradients to those of the taps (W, C) and of the padded input (B, W-1 + T, C)."""
    length = part.stop - part.start
    product = torch.empty_like(dtotal)
    for tap in range(taps.shape[0]):
        source, masked = window[:, tap : tap + length], dtotal
        if masks is not None:
            masked = dtotal * masks[tap, :, part]
        dtaps[tap] += torch.mul(masked, source, out=product).sum((0, 1))
        dpadded[:, part.start + tap : part.stop + tap].addcmul_(masked, taps[tap])
