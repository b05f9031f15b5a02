"""State-space dual scan by chunks: dense products inside a chunk, the state carried from chunk to chunk.

The backward keeps the inputs and each chunk's start state, walks the chunks in reverse and computes the rest anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..common import accumulator, segments
from . import ssd_chunk
from .ssd_chunk import Decays, Shape, TokenGrads, Workspace

CPU_CHUNK = 64
"""Longest chunk used on CPU, where passes over the (L, L) matrices cost more than products with the state."""


def ssd_scan(
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
    if x.device.type == "cpu":
        chunk_size = min(chunk_size, CPU_CHUNK)
    inputs = (x, dt, A, B, C, D, dt_bias, initial_state)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    segment = None if document_ids is None else segments(document_ids)
    return _Scan.apply(*inputs, segment, chunk_size, keep)


def ssd_step(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor
) -> Tensor:
    """See nano3.kernels.ssd_step."""
    batch, H, P, N = state.shape
    wide, G = state.dtype, B.shape[1]
    x_wide = x.to(wide)
    step = F.softplus(dt.to(wide) + dt_bias.to(wide))
    state.mul_(torch.exp(step * A.to(wide)).view(batch, H, 1, 1))
    by_group = state.view(batch, G, H // G * P, N)
    by_group.addcmul_((x_wide * step.unsqueeze(-1)).view(batch, G, -1, 1), B.to(wide).unsqueeze(2))
    y = (by_group @ C.to(wide).unsqueeze(-1)).view(batch, H, P)
    return y.addcmul_(x_wide, D.to(wide).unsqueeze(-1)).to(x.dtype)


@dataclass
class _Chunks:
    """The chunks of one scan: their slices, buffers and decays."""

    shape: Shape
    length: int
    step: Tensor
    """(B, T, H) softplus(dt + dt_bias)"""
    log_decay: Tensor
    """(B, T, H)"""
    segment: Tensor | None
    """(B, T) document numbers"""
    backward: bool = False

    @property
    def slices(self) -> list[slice]:
        T = self.step.shape[1]
        return [slice(t, min(t + self.length, T)) for t in range(0, T, self.length)]

    def walk(self, B: Tensor, C: Tensor) -> Iterator[tuple[int, slice, Workspace, Decays]]:
        """Each chunk with its groups and decays loaded, in order, or in reverse order for the backward."""
        work = None
        order = list(enumerate(self.slices))
        for i, part in reversed(order) if self.backward else order:
            length = part.stop - part.start
            if work is None or work.length != length:
                work = Workspace(self.shape, length, backward=self.backward)
            segment = previous = None
            if self.segment is not None:
                segment, previous = self.segment[:, part], self.segment[:, max(part.start - 1, 0)]
            work.load_groups(B[:, part], C[:, part], segment)
            yield i, part, work, ssd_chunk.decays(work, self.log_decay[:, part], segment, previous)


def _chunks(inputs: tuple[Tensor, ...], segment: Tensor | None, length: int, *, backward: bool = False) -> _Chunks:
    x, dt, A, B, _, _, dt_bias = inputs
    wide, G = accumulator(x.dtype), B.shape[2]
    step = F.softplus(dt.to(wide) + dt_bias.to(wide))
    shape = Shape(x.shape[0], G, x.shape[2] // G, x.shape[3], B.shape[3], wide, x.device)
    return _Chunks(shape, length, step, step * A.to(wide), segment, backward)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, dt, A, B, C, D, dt_bias, initial_state, segment, length, keep):
        chunks = _chunks((x, dt, A, B, C, D, dt_bias), segment, length)
        s = chunks.shape
        n_states = len(chunks.slices) + 1 if keep else 1
        states = s.empty(n_states, s.B * s.G, s.R * s.P, s.N)
        if initial_state is None:
            states[0].zero_()
        else:
            states[0].copy_(initial_state.reshape(states[0].shape))
        y, D_wide = torch.empty_like(x, memory_format=torch.contiguous_format), D.to(s.dtype)
        for i, part, work, decay in chunks.walk(B, C):
            before, after = (states[i], states[i + 1]) if keep else (states[0], states[0])
            ssd_chunk.chunk_forward(work, x[:, part], chunks.step[:, part], decay, D_wide, before, y[:, part])
            ssd_chunk.advance(work, decay, before, after)
        ctx.save_for_backward(x, dt, A, B, C, D, dt_bias, states[:-1], segment)
        ctx.length, ctx.initial = length, initial_state
        return y, states[-1].view(s.B, s.G * s.R, s.P, s.N).clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dfinal: Tensor):
        x, dt, A, B, C, D, dt_bias, states, segment = ctx.saved_tensors
        chunks = _chunks((x, dt, A, B, C, D, dt_bias), segment, ctx.length, backward=True)
        dstate = dfinal.to(chunks.shape.dtype).reshape(states.shape[1:]).clone(memory_format=torch.contiguous_format)
        grads = _token_grads(chunks, x, B)
        D_wide = D.to(chunks.shape.dtype)
        for i, part, work, decay in chunks.walk(B, C):
            dx, dlog = ssd_chunk.chunk_backward(
                work, x[:, part], chunks.step[:, part], decay, states[i], dy[:, part], dstate
            )
            grads.log_decay[:, part] = dlog.transpose(1, 2)
            ssd_chunk.store(work, grads, part, x[:, part], chunks.step[:, part], D_wide, dx)
        ddt, dA, ddt_bias = _step_grads(grads, chunks, dt, A, dt_bias)
        dinitial = None
        if ctx.needs_input_grad[7]:
            dinitial = dstate.view_as(ctx.initial).to(ctx.initial.dtype)
        return grads.x, ddt, dA, grads.B, grads.C, grads.D.to(D.dtype), ddt_bias, dinitial, None, None, None


def _token_grads(chunks: _Chunks, x: Tensor, B: Tensor) -> TokenGrads:
    per_token = torch.empty_like(chunks.step)
    return TokenGrads(
        x=torch.empty_like(x, memory_format=torch.contiguous_format),
        B=torch.empty_like(B, memory_format=torch.contiguous_format),
        C=torch.empty_like(B, memory_format=torch.contiguous_format),
        step=per_token,
        log_decay=torch.empty_like(per_token),
        D=per_token.new_zeros(per_token.shape[2]),
    )


def _step_grads(
    grads: TokenGrads, chunks: _Chunks, dt: Tensor, A: Tensor, dt_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of dt, A and dt_bias from those of the steps and log decays."""
    wide = grads.step.dtype
    dA = (grads.log_decay * chunks.step).sum((0, 1))
    dstep = grads.step.addcmul_(grads.log_decay, A.to(wide))
    ddt = dstep.mul_(torch.sigmoid(dt.to(wide) + dt_bias.to(wide)))
    return ddt.to(dt.dtype), dA.to(A.dtype), ddt.sum((0, 1)).to(dt_bias.dtype)
