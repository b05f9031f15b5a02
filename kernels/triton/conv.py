"""Causal convolution and SiLU forward, channels last: one program for each tile of times and channels."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..eager import FUNCTIONS as EAGER
from .call import INTERPRETED, Kernel, fits, guarded, launch, normal, shaped, wants_gradient

WIDEST = 8
"""Most taps; loops over them are unrolled."""
TILE = (64, 512) if INTERPRETED else (32, 128)
"""Times, channels. The interpreter takes as long for a small tile as for a large one."""


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


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    initial_state: Tensor | None = None,
    document_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See nano3.kernels.causal_conv1d."""
    (B, T, C), width = x.shape, weight.shape[1]
    takes = x.numel() > 0 and 2 <= width <= WIDEST and fits(x, weight, bias, initial_state)
    shapes = shaped((weight, (C, width)), (bias, (C,)), (initial_state, (B, C, width - 1)))
    if not (takes and shapes) or wants_gradient(x, weight, bias, initial_state):
        return EAGER["causal_conv1d"](x, weight, bias, initial_state=initial_state, document_ids=document_ids)
    x = x if x.stride(2) == 1 else x.contiguous()
    ids = x if document_ids is None else document_ids.to(x.device).contiguous()
    state = x[:, : width - 1].mT if initial_state is None else initial_state
    out = torch.empty((B, T, C), dtype=x.dtype, device=x.device)
    final = torch.empty((B, C, width - 1), dtype=x.dtype, device=x.device)
    sizes = (T, C, x.stride(0), x.stride(1), *state.stride())
    times, channels = TILE
    options = {"WIDTH": width, "HAS_IDS": document_ids is not None, "HAS_STATE": initial_state is not None}
    launch(
        conv_kernel, (-(-T // times), -(-C // channels), B), x, weight.contiguous(), bias.contiguous(),
        ids, state, out, *sizes, **options, TIMES=times, CHANNELS=channels,
        num_warps=8,
    )  # fmt: skip
    launch(
        final_state_kernel, (-(-C // 512), B), x, ids, state, final, *sizes, **options, CHANNELS=512
    )  # fmt: skip
    return out, final


def _case(g: torch.Generator, dtype: torch.dtype) -> tuple:
    return normal(g, dtype, 2, 9, 35), normal(g, dtype, 35, 4), normal(g, dtype, 35)


KERNELS = {
    "causal_conv1d": Kernel(guarded(causal_conv1d, EAGER["causal_conv1d"]), "passes without gradient", _case),
}
