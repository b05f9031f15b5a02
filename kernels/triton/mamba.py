"""One token of many sequences through a Mamba-2 block's convolution, scan and gated norm, on states where they lie.

Two kernels. The first has a program for some channels of one head of one sequence: it convolves what it needs, reads
and writes its part of the scan's state once, and leaves y. Heads of a group share B and C, so the conv state stays as
it is until the second, a program for each group, has normalised y and moved that state on.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..eager import FUNCTIONS as EAGER
from .call import INTERPRETED, Kernel, fits, guarded, launch, normal, power_of_2, shaped

CHANNELS = 64 if INTERPRETED else 32
"""Channels of a head that a program takes: 16 KiB of state at N = 128."""
WIDEST_GROUP, MOST_STATES, WIDEST = 1 << 14, 256, 8
"""Most numbers of a group of the norm, most states N, most taps."""


@triton.jit
def _convolved(X, STATE, W, BIAS, c, inside, WIDTH: tl.constexpr):
    """silu(bias + sum over taps) of channels c, for one token behind the state of its sequence."""
    newest = tl.load(X + c, mask=inside, other=0.0).to(STATE.dtype.element_ty).to(tl.float32)
    total = tl.load(BIAS + c, mask=inside, other=0.0).to(tl.float32)
    total += newest * tl.load(W + c * WIDTH + WIDTH - 1, mask=inside, other=0.0).to(tl.float32)
    for tap in tl.static_range(WIDTH - 1):  # type: ignore[misc]
        past = tl.load(STATE + c * (WIDTH - 1) + tap, mask=inside, other=0.0).to(tl.float32)
        total += past * tl.load(W + c * WIDTH + tap, mask=inside, other=0.0).to(tl.float32)
    return total * tl.sigmoid(total)


@triton.jit
def _softplus(x):
    """log(1 + exp(x)), exact to rounding for small exp(x) too, and x where exp(x) is large."""
    e = tl.exp(tl.minimum(x, 20.0))
    u = 1.0 + e
    log1p = tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))
    return tl.where(x > 20.0, x, log1p)


@triton.jit
def scan_step_kernel(
    X, DT, CONV, SSM, SLOTS, W, BIAS, A_LOG, D, DT_BIAS, Y, slots, H, P, N, G, x_row, dt_row, conv_slot, ssm_slot,
    WIDTH: tl.constexpr, CHANNELS: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """Advances SSM[slot] by a token, and Y (B, H P) fp32 = state C + D x, for some channels of one head."""
    b, part = tl.program_id(1).to(tl.int64), tl.program_id(0)
    parts = tl.cdiv(P, CHANNELS)
    h, p = part // parts, (part % parts) * CHANNELS + tl.arange(0, CHANNELS)
    n, g = tl.arange(0, STATES), h // (H // G)
    in_p, in_n = p < P, n < N
    slot = tl.load(SLOTS + b).to(tl.int64)
    if (slot >= 0) & (slot < slots):
        row, past = X + b * x_row, CONV + slot * conv_slot
        x = _convolved(row, past, W, BIAS, h * P + p, in_p, WIDTH)
        B = _convolved(row, past, W, BIAS, H * P + g * N + n, in_n, WIDTH)
        C = _convolved(row, past, W, BIAS, H * P + (G + g) * N + n, in_n, WIDTH)
        step = _softplus(tl.load(DT + b * dt_row + h).to(tl.float32) + tl.load(DT_BIAS + h).to(tl.float32))
        decay = tl.exp(-step * tl.exp(tl.load(A_LOG + h).to(tl.float32)))
        at = SSM + slot * ssm_slot + (h * P + p)[:, None] * N + n[None, :]
        inside = in_p[:, None] & in_n[None, :]
        state = tl.load(at, mask=inside, other=0.0) * decay + (step * x)[:, None] * B[None, :]
        tl.store(at, state, mask=inside)
        y = tl.sum(state * C[None, :], 1) + tl.load(D + h).to(tl.float32) * x
        tl.store(Y + b * H * P + h * P + p, y, mask=in_p)


@triton.jit
def _move_on(X, STATE, c, inside, WIDTH: tl.constexpr):
    """Drop the oldest input of channels c and append the newest."""
    for tap in tl.static_range(WIDTH - 2):  # type: ignore[misc]
        later = tl.load(STATE + c * (WIDTH - 1) + tap + 1, mask=inside)
        tl.store(STATE + c * (WIDTH - 1) + tap, later, mask=inside)
    newest = tl.load(X + c, mask=inside)
    tl.store(STATE + c * (WIDTH - 1) + WIDTH - 2, newest.to(STATE.dtype.element_ty), mask=inside)


@triton.jit
def norm_step_kernel(
    X, Y, Z, CONV, SLOTS, NORM, OUT, slots, width, N, G, x_row, z_row, conv_slot, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """OUT = gated norm of one group of y (`width` numbers), and the conv state of the group's x, B and C moved on."""
    b, g = tl.program_id(1).to(tl.int64), tl.program_id(0)
    D = width * G
    i, n = tl.arange(0, BLOCK), tl.arange(0, STATES)
    inside, c = i < width, g * width + i
    slot = tl.load(SLOTS + b).to(tl.int64)
    if (slot >= 0) & (slot < slots):
        z = tl.load(Z + b * z_row + c, mask=inside, other=0.0).to(tl.float32)
        y = tl.load(Y + b * D + c, mask=inside, other=0.0) * z * tl.sigmoid(z)
        rstd = 1 / tl.sqrt(tl.sum(y * y, 0) / width + eps)
        weight = tl.load(NORM + c, mask=inside, other=0.0).to(tl.float32)
        tl.store(OUT + b * D + c, (y * rstd * weight).to(OUT.dtype.element_ty), mask=inside)
        row, past = X + b * x_row, CONV + slot * conv_slot
        _move_on(row, past, c, inside, WIDTH)
        _move_on(row, past, D + g * N + n, n < N, WIDTH)
        _move_on(row, past, D + (G + g) * N + n, n < N, WIDTH)
    else:
        nothing = tl.where(i * 0 + slot < 0, 0.0, float("nan"))
        tl.store(OUT + b * D + c, nothing.to(OUT.dtype.element_ty), mask=inside)


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
    """See nano3.kernels.mamba_step. A slot of -1 marks a row of padding: it advances no state and gives zeros; one that
    is not there gives nan."""
    weights = (conv_weight, conv_bias, A_log, D, dt_bias, norm_weight)
    if not _takes(xBC, dt, z, conv_state, ssm_state, slots, weights, n_groups):
        return EAGER["mamba_step"](xBC, dt, z, conv_state, ssm_state, slots, *weights, eps, n_groups)
    conv_weight, conv_bias, A_log, D, dt_bias, norm_weight = (weight.contiguous() for weight in weights)
    xBC, dt, z = (rows if rows.stride(1) == 1 else rows.contiguous() for rows in (xBC, dt, z))
    slots = slots.contiguous()
    (B, width), (_, H, P, N) = z.shape, ssm_state.shape
    y = torch.empty((B, width), dtype=torch.float32, device=z.device)
    out = torch.empty((B, width), dtype=z.dtype, device=z.device)
    count, taps, states = min(len(conv_state), len(ssm_state)), conv_weight.shape[1], power_of_2(N)
    channels = min(CHANNELS, power_of_2(P))
    launch(
        scan_step_kernel, (H * -(-P // channels), B), xBC, dt, conv_state, ssm_state, slots, conv_weight, conv_bias,
        A_log, D, dt_bias, y, count, H, P, N, n_groups, xBC.stride(0), dt.stride(0), conv_state.stride(0),
        ssm_state.stride(0), WIDTH=taps, CHANNELS=channels, STATES=states, num_warps=4,
    )  # fmt: skip
    launch(
        norm_step_kernel, (n_groups, B), xBC, y, z, conv_state, slots, norm_weight, out, count, width // n_groups, N,
        n_groups, xBC.stride(0), z.stride(0), conv_state.stride(0), eps, WIDTH=taps,
        BLOCK=power_of_2(width // n_groups), STATES=states, num_warps=4,
    )  # fmt: skip
    return out


def _takes(xBC, dt, z, conv_state, ssm_state, slots, weights, n_groups: int) -> bool:
    """Whether the kernels can: types, dense states, shapes that go together."""
    if not fits(xBC, dt, z, conv_state, ssm_state, *weights) or ssm_state.dtype != torch.float32 or not z.numel():
        return False
    _, H, P, N = ssm_state.shape
    B, taps, channels = len(xBC), conv_state.shape[2] + 1, H * P + 2 * n_groups * N
    dense = conv_state[0].is_contiguous() and ssm_state[0].is_contiguous()
    rows = shaped((xBC, (B, channels)), (dt, (B, H)), (z, (B, H * P)), (slots, (B,)))
    heads = [(weight, (H,)) for weight in weights[2:5]]
    shapes = shaped((weights[0], (channels, taps)), (weights[1], (channels,)), *heads, (weights[5], (H * P,)))
    groups = H % n_groups == 0 and conv_state.shape[1] == channels and slots.device == z.device
    sizes = N <= MOST_STATES and 2 <= taps <= WIDEST and H * P // n_groups <= WIDEST_GROUP
    return dense and rows and shapes and groups and sizes


def _case(g: torch.Generator, dtype: torch.dtype) -> tuple:
    B, H, P, N, G, width = 2, 4, 5, 3, 2, 4
    C = H * P + 2 * G * N
    inputs = normal(g, dtype, B, C), normal(g, dtype, B, H), normal(g, dtype, B, H * P)
    states = normal(g, dtype, 4, C, width - 1), normal(g, torch.float32, 4, H, P, N)
    heads = [normal(g, torch.float32, H) for _ in range(3)]
    weights = normal(g, dtype, C, width), normal(g, dtype, C), *heads, normal(g, dtype, H * P)
    return *inputs, *states, torch.tensor([2, 0], device="cpu"), *weights, 1e-5, G


KERNELS = {"mamba_step": Kernel(guarded(mamba_step, EAGER["mamba_step"]), "states N up to 256", _case)}
