"""Causal convolution and SiLU, channels last, forward and backward: one program for each tile of times and channels."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..eager import FUNCTIONS as EAGER
from .call import INTERPRETED, Kernel, fits, guarded, launch, normal, shaped, wants_gradient

WIDEST = 8
"""Most taps; loops over them are unrolled."""
TILE = (64, 512) if INTERPRETED else (32, 128)
"""Times, channels. The interpreter takes as long for a small tile as for a large one."""
GRADIENT_TILE = (64, 512) if INTERPRETED else (32, 64)
"""Of the backward pass, which makes each sum before the SiLU as often as there are taps."""


@triton.jit
def _input(
    X, STATE, t, c, inside, T, x_time, state_channel, state_tap, PAST: tl.constexpr, HAS_STATE: tl.constexpr, early
):  # fmt: skip
    """Inputs at times t, of which those before 0 lie in the state (only where `early`); 0 where not `inside`."""
    x = tl.load(X + t.to(tl.int64) * x_time + c, mask=inside & (t >= 0) & (t < T), other=0.0).to(tl.float32)
    if HAS_STATE:  # noqa: SIM102 (one is known when compiling, the other on the device)
        if early:
            at = c * state_channel + (t + PAST) * state_tap
            x += tl.load(STATE + at, mask=inside & (t < 0), other=0.0).to(X.dtype.element_ty).to(tl.float32)
    return x


@triton.jit
def conv_kernel(
    X, W, BIAS, IDS, STATE, OUT, T, C, x_batch, x_time, state_batch, state_channel, state_tap,
    WIDTH: tl.constexpr, HAS_IDS: tl.constexpr, HAS_STATE: tl.constexpr, TIMES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """OUT[b, t] = silu(bias + sum over taps of weight * input), for one tile of (t, c)."""
    t = tl.program_id(0) * TIMES + tl.arange(0, TIMES)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    b = tl.program_id(2).to(tl.int64)
    in_c, same, early = c < C, t < T, tl.program_id(0) * TIMES < WIDTH
    total = tl.zeros((TIMES, CHANNELS), tl.float32)
    total += tl.load(BIAS + c, mask=in_c, other=0.0).to(tl.float32)[None, :]
    if HAS_IDS:
        document = tl.load(IDS + b * T + t, mask=same, other=0)
    for back in tl.static_range(WIDTH):  # type: ignore[misc]
        if HAS_IDS:  # what precedes the row is the first document's
            before = tl.load(IDS + b * T + tl.maximum(t - back, 0), mask=t < T, other=0)
            same = same & (before == document)
            document = before
        x = _input(
            X + b * x_batch, STATE + b * state_batch, (t - back)[:, None], c[None, :], same[:, None] & in_c[None, :],
            T, x_time, state_channel, state_tap, WIDTH - 1, HAS_STATE, early,
        )  # fmt: skip
        total += x * tl.load(W + c * WIDTH + (WIDTH - 1 - back), mask=in_c, other=0.0).to(tl.float32)[None, :]
    y = total * tl.sigmoid(total)
    at = (b * T + t.to(tl.int64))[:, None] * C + c[None, :]
    tl.store(OUT + at, y.to(OUT.dtype.element_ty), mask=(t < T)[:, None] & in_c[None, :])


@triton.jit
def final_state_kernel(
    X, IDS, STATE, FINAL, T, C, x_batch, x_time, state_batch, state_channel, state_tap,
    WIDTH: tl.constexpr, HAS_IDS: tl.constexpr, HAS_STATE: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """FINAL[b, c] = the last WIDTH - 1 inputs, 0 where they belong to another document than the last one."""
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    b = tl.program_id(1).to(tl.int64)
    same, early = c < C, T < WIDTH
    if HAS_IDS:
        document = tl.load(IDS + b * T + T - 1)
    for back in tl.static_range(WIDTH - 1):  # type: ignore[misc]
        t = T - 1 - back + c * 0
        if HAS_IDS:
            before = tl.load(IDS + b * T + tl.maximum(T - 1 - back, 0))
            same = same & (before + c * 0 == document)  # a mask of one type in every release of the interpreter
            document = before
        x = _input(
            X + b * x_batch, STATE + b * state_batch, t, c, same, T, x_time, state_channel, state_tap, WIDTH - 1,
            HAS_STATE, early,
        )  # fmt: skip
        at = (b * C + c) * (WIDTH - 1) + (WIDTH - 2 - back)
        tl.store(FINAL + at, x.to(FINAL.dtype.element_ty), mask=c < C)


@triton.jit
def gradient_kernel(
    X, W, BIAS, IDS, STATE, DOUT, DFINAL, DX, DSTATE, PARTS, T, C, x_batch, x_time, state_batch, state_channel,
    state_tap, dout_batch, dout_time,
    WIDTH: tl.constexpr, HAS_IDS: tl.constexpr, HAS_STATE: tl.constexpr, TIMES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """DX (B, T, C) and DSTATE (B, C, WIDTH - 1) of one tile of inputs, those before t = 0 included, and the tile's part
    of the gradients of weight and bias: PARTS (B, tiles, WIDTH + 1, C) fp32. Sums before the SiLU are made anew."""
    PAST: tl.constexpr = WIDTH - 1
    first = tl.program_id(0) * TIMES - (PAST if HAS_STATE else 0)
    t, c = first + tl.arange(0, TIMES), tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    b, early = tl.program_id(2).to(tl.int64), first < WIDTH
    in_c, given = c < C, (t < T)[:, None] & (c < C)[None, :]
    X, STATE, IDS, DOUT = X + b * x_batch, STATE + b * state_batch, IDS + b * T, DOUT + b * dout_batch
    PARTS += (b * tl.num_programs(0) + tl.program_id(0)) * (WIDTH + 1) * C
    own = _input(X, STATE, t[:, None], c[None, :], given, T, x_time, state_channel, state_tap, PAST, HAS_STATE, early)
    dx = tl.zeros((TIMES, CHANNELS), tl.float32)
    joined = t < T
    for ahead in tl.static_range(WIDTH):  # type: ignore[misc]
        u = t + ahead
        total = tl.zeros((TIMES, CHANNELS), tl.float32)
        total += tl.load(BIAS + c, mask=in_c, other=0.0).to(tl.float32)[None, :]
        same = (u >= 0) & (u < T)
        if HAS_IDS:
            document = tl.load(IDS + tl.minimum(tl.maximum(u, 0), T - 1))
            if ahead > 0:
                joined = joined & ((tl.load(IDS + tl.minimum(tl.maximum(u - 1, 0), T - 1)) == document) | (u >= T))
        for back in tl.static_range(WIDTH):  # type: ignore[misc]
            if HAS_IDS:
                before = tl.load(IDS + tl.minimum(tl.maximum(u - back, 0), T - 1))
                same = same & (before == document)
                document = before
            x = _input(
                X, STATE, (u - back)[:, None], c[None, :], same[:, None] & in_c[None, :], T, x_time, state_channel,
                state_tap, PAST, HAS_STATE, early,
            )  # fmt: skip
            total += x * tl.load(W + c * WIDTH + (PAST - back), mask=in_c, other=0.0).to(tl.float32)[None, :]
        share = tl.sigmoid(total)
        inside = (joined & (u >= 0) & (u < T))[:, None] & in_c[None, :]
        dout = tl.load(DOUT + u.to(tl.int64)[:, None] * dout_time + c[None, :], mask=inside, other=0.0).to(tl.float32)
        dtotal = tl.where(inside, dout * share * (1 + total * (1 - share)), 0.0)
        dx += dtotal * tl.load(W + c * WIDTH + (PAST - ahead), mask=in_c, other=0.0).to(tl.float32)[None, :]
        tl.store(PARTS + (PAST - ahead) * C + c, tl.sum(dtotal * own, 0), mask=in_c)
        if ahead == 0:
            tl.store(PARTS + WIDTH * C + c, tl.sum(dtotal, 0), mask=in_c)
    kept = (joined & (t >= T - PAST))[:, None] & in_c[None, :]
    at = (b * C + c)[None, :] * PAST + (t - T + PAST)[:, None]
    dx += tl.load(DFINAL + at, mask=kept, other=0.0).to(tl.float32)
    out = DX + (b * T + t.to(tl.int64))[:, None] * C + c[None, :]
    tl.store(out, dx.to(DX.dtype.element_ty), mask=given & (t >= 0)[:, None])
    if HAS_STATE:  # noqa: SIM102 (one is known when compiling, the other on the device)
        if early:
            at = (b * C + c)[None, :] * PAST + (t + PAST)[:, None]
            tl.store(DSTATE + at, dx.to(DSTATE.dtype.element_ty), mask=given & (t < 0)[:, None])


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    initial_state: Tensor | None = None,
    document_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See nano3.kernels.causal_conv1d."""
    (B, _, C), width = x.shape, weight.shape[1]
    takes = x.numel() > 0 and 2 <= width <= WIDEST and fits(x, weight, bias, initial_state)
    shapes = shaped((weight, (C, width)), (bias, (C,)), (initial_state, (B, C, width - 1)))
    if not (takes and shapes):
        return EAGER["causal_conv1d"](x, weight, bias, initial_state=initial_state, document_ids=document_ids)
    ids = None if document_ids is None else document_ids.to(x.device).contiguous()
    if wants_gradient(x, weight, bias, initial_state):
        return _Conv.apply(x, weight, bias, initial_state, ids)
    return _Launches(x, weight, bias, initial_state, ids).forward()


class _Launches:
    """The kernels' arguments: x with dense channels, and any tensor in the place of one that is not given."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor, state: Tensor | None, ids: Tensor | None) -> None:
        (self.B, self.T, self.C), self.width = x.shape, weight.shape[1]
        self.x = x if x.stride(2) == 1 else x.contiguous()
        self.weight, self.bias = weight.contiguous(), bias.contiguous()
        self.ids = self.x if ids is None else ids
        self.state = self.x[:, : self.width - 1].mT if state is None else state
        self.sizes = (self.T, self.C, self.x.stride(0), self.x.stride(1), *self.state.stride())
        self.options = {"WIDTH": self.width, "HAS_IDS": ids is not None, "HAS_STATE": state is not None}

    def forward(self) -> tuple[Tensor, Tensor]:
        """The output and the final state."""
        (times, channels), x = TILE, self.x
        out = torch.empty((self.B, self.T, self.C), dtype=x.dtype, device=x.device)
        final = torch.empty((self.B, self.C, self.width - 1), dtype=x.dtype, device=x.device)
        launch(
            conv_kernel, (-(-self.T // times), -(-self.C // channels), self.B), x, self.weight, self.bias, self.ids,
            self.state, out, *self.sizes, **self.options, TIMES=times, CHANNELS=channels, num_warps=8,
        )  # fmt: skip
        launch(
            final_state_kernel, (-(-self.C // 512), self.B), x, self.ids, self.state, final, *self.sizes,
            **self.options, CHANNELS=512,
        )  # fmt: skip
        return out, final

    def backward(self, dout: Tensor, dfinal: Tensor) -> tuple[Tensor, ...]:
        """Gradients of x and the state, in their types, and of weight and bias in fp32."""
        (times, channels), (x, state) = GRADIENT_TILE, (self.x, self.state)
        dout, dfinal = dout if dout.stride(2) == 1 else dout.contiguous(), dfinal.contiguous()
        tiles = -(-(self.T + (self.width - 1) * self.options["HAS_STATE"]) // times)
        dx = torch.empty((self.B, self.T, self.C), dtype=x.dtype, device=x.device)
        dstate = torch.empty((self.B, self.C, self.width - 1), dtype=state.dtype, device=x.device)
        parts = torch.empty((self.B, tiles, self.width + 1, self.C), dtype=torch.float32, device=x.device)
        launch(
            gradient_kernel, (tiles, -(-self.C // channels), self.B), x, self.weight, self.bias, self.ids, state, dout,
            dfinal, dx, dstate, parts, *self.sizes, dout.stride(0), dout.stride(1), **self.options, TIMES=times,
            CHANNELS=channels, num_warps=8,
        )  # fmt: skip
        sums = parts.flatten(0, 1).sum(0)
        return dx, dstate, sums[:-1].T, sums[-1]


class _Conv(torch.autograd.Function):
    """Keeps the inputs alone."""

    @staticmethod
    def forward(ctx: Any, x, weight, bias, state, ids):
        ctx.save_for_backward(x, weight, bias, state, ids)
        return _Launches(x, weight, bias, state, ids).forward()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, dfinal: Tensor):
        x, weight, bias, state, ids = ctx.saved_tensors
        dx, dstate, dweight, dbias = _Launches(x, weight, bias, state, ids).backward(dout, dfinal)
        return dx, dweight.to(weight.dtype), dbias.to(bias.dtype), None if state is None else dstate, None


def _case(g: torch.Generator, dtype: torch.dtype) -> tuple:
    return normal(g, dtype, 2, 9, 35), normal(g, dtype, 35, 4), normal(g, dtype, 35)


KERNELS = {
    "causal_conv1d": Kernel(
        guarded(causal_conv1d, EAGER["causal_conv1d"]), "2 to 8 taps, forward and backward", _case, differentiable=True
    ),
}
