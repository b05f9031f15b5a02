"""The chunked state-space scan in C++, forward and backward."""

from __future__ import annotations

from ctypes import c_int64
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..eager import FUNCTIONS as EAGER
from .call import I, Kernel, P, declare, empty, normal, readable, run
from .native import TYPES

LONGEST_CHUNK = 64
"""Longest chunk: longer ones cost more inside the chunk than they save on states."""
MOST_PANEL, MOST_UNIT = 32, 4
"""What every instruction set's panels and row units divide; see src/gemm.inl."""
_INPUTS = (P, P, P, P, I, P, P, P, P, P, P, P)
declare(ssd_scan=(*_INPUTS, P, P, P), ssd_scan_backward=(*_INPUTS, P, P, P, P, P, P, P, P, P))


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
    """See nano3.kernels.ssd_scan.

    A nan or infinity in a token reaches no earlier one, but may reach up to 11 tokens behind the end of its document.
    """
    inputs = (x, dt, A, B, C, D, dt_bias, initial_state)
    grads = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    if _fits(*inputs):
        ids = None if document_ids is None else document_ids.to(torch.int64).contiguous()
        chunk = min(chunk_size, LONGEST_CHUNK)
        result = _Scan.apply(*inputs, ids, chunk) if grads else _forward(_Arguments.of(*inputs, ids, chunk))
        if result is not None:
            return result
    options = {"initial_state": initial_state, "document_ids": document_ids, "chunk_size": chunk_size}
    return EAGER["ssd_scan"](x, dt, A, B, C, D, dt_bias, **options)


def _fits(x, dt, A, B, C, D, dt_bias, initial_state) -> bool:
    """Whether sizes and types are those that the kernel takes for granted."""
    if torch.compiler.is_compiling() or x.dim() != 4 or B.dim() != 4 or not x.numel() or not B.numel():
        return False
    batch, T, H, width = x.shape
    G, N = B.shape[2:]
    sizes = dt.shape == (batch, T, H) and B.shape == C.shape == (batch, T, G, N) and H % G == 0
    sizes = sizes and all(t.shape == (H,) for t in (A, D, dt_bias))
    rows = (x, dt, B, C)
    types = readable(*rows, A, D, dt_bias) and all(t.dtype == x.dtype for t in rows)
    if initial_state is not None:
        sizes = sizes and initial_state.shape == (batch, H, width, N)
        types = types and readable(initial_state)
    return sizes and types


class _Arguments(NamedTuple):
    """Tensors as the kernel reads them."""

    x: Tensor
    """(B, T, H, P), and so on: dense within a token"""
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    dt_bias: Tensor
    initial: Tensor | None
    ids: Tensor | None
    """(B, T) int64"""
    chunk: int

    @staticmethod
    def of(x, dt, A, B, C, D, dt_bias, initial, ids, chunk) -> _Arguments:
        if initial is not None:
            initial = initial.float().contiguous()
        A, D, dt_bias = (t.float().contiguous() for t in (A, D, dt_bias))
        return _Arguments(_dense(x), _dense(dt), A, _dense(B), _dense(C), D, dt_bias, initial, ids, chunk)

    def empty_states(self) -> Tensor:
        """Room for each head's state at the start of each chunk, in the kernel's own layout."""
        batch, T, H, width = self.x.shape
        chunks = -(-T // min(self.chunk, T))
        state = _round_up(width, MOST_PANEL) * _round_up(self.B.shape[-1], MOST_UNIT)
        return empty(batch * H * chunks * state)

    def pointers(self) -> tuple:
        """Arguments that the forward and the backward kernel begin with; keep the arrays until the call is over."""
        batch, T, H, width = self.x.shape
        rows = (self.x, self.dt, self.B, self.C)
        sizes = (c_int64 * 7)(batch, T, H, width, *self.B.shape[2:], min(self.chunk, T))
        strides = (c_int64 * 8)(*(t.stride(d) for t in rows for d in (1, 0)))
        return (
            *(t.data_ptr() for t in rows), TYPES[self.x.dtype], sizes, strides,
            self.A.data_ptr(), self.D.data_ptr(), self.dt_bias.data_ptr(), _pointer(self.initial), _pointer(self.ids),
        )  # fmt: skip


def _pointer(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


def _dense(t: Tensor) -> Tensor:
    """t, or a copy where the numbers of a token do not lie one after another."""
    inner = 1
    for size, stride in zip(reversed(t.shape[2:]), reversed(t.stride()[2:]), strict=True):
        if size > 1 and stride != inner:
            return t.contiguous()
        inner *= size
    return t


def _round_up(n: int, step: int) -> int:
    return -(-n // step) * step


def _forward(a: _Arguments, states: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
    """y and the final state, the chunks' start states into `states`; None when there was no memory."""
    batch, _, H, width = a.x.shape
    y = empty(a.x.shape, dtype=a.x.dtype)
    final = empty(batch, H, width, a.B.shape[-1])
    done = run("ssd_scan", *a.pointers(), y.data_ptr(), final.data_ptr(), _pointer(states))
    return (y, final) if done else None


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, dt, A, B, C, D, dt_bias, initial_state, ids, chunk):
        a = _Arguments.of(x, dt, A, B, C, D, dt_bias, initial_state, ids, chunk)
        states = a.empty_states()
        result = _forward(a, states)
        if result is None:
            raise MemoryError("ssd_scan: no memory for the kernel's buffers")
        ctx.save_for_backward(x, dt, A, B, C, D, dt_bias, initial_state, ids, states)
        ctx.chunk = chunk
        ctx.set_materialize_grads(False)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None):
        x, dt, A, B, C, D, dt_bias, initial_state, ids, states = ctx.saved_tensors
        a = _Arguments.of(x, dt, A, B, C, D, dt_bias, initial_state, ids, ctx.chunk)
        rows = [empty(t.shape, dtype=t.dtype) for t in (a.x, a.dt, a.B, a.C)]
        dy_rows = torch.zeros_like(rows[0]) if dy is None else dy.contiguous()
        dfinal = None if dfinal is None else dfinal.contiguous()
        sums = empty(3, a.A.numel())
        dinitial = torch.empty_like(a.initial) if a.initial is not None and ctx.needs_input_grad[7] else None
        done = run(
            "ssd_scan_backward", *a.pointers(), dy_rows.data_ptr(), _pointer(dfinal), states.data_ptr(),
            *(t.data_ptr() for t in rows), sums.data_ptr(), _pointer(dinitial),
        )  # fmt: skip
        if not done:
            raise MemoryError("ssd_scan: no memory for the kernel's buffers")
        dx, ddt, dB, dC = rows
        dA, dD, dbias = (total.to(t.dtype) for total, t in zip(sums, (A, D, dt_bias), strict=True))
        dinitial = None if dinitial is None else dinitial.to(initial_state.dtype)
        return dx, ddt, dA, dB, dC, dD, dbias, dinitial, None, None


def _scan(g: torch.Generator, dtype: torch.dtype) -> tuple:
    # The reference walks token by token: over a chunk's end with one type only.
    tokens = LONGEST_CHUNK + 3 if dtype == torch.float32 else 19
    B, T, H, P_, G, N = 2, tokens, 4, 5, 2, 19
    A, D, dt_bias = (normal(g, torch.float32, H) for _ in range(3))
    rows = normal(g, dtype, B, T, H, P_), normal(g, dtype, B, T, H)
    return *rows, -A.abs(), *(normal(g, dtype, B, T, G, N) for _ in range(2)), D, dt_bias - 1


KERNELS = {"ssd_scan": Kernel(ssd_scan, "float32 and bfloat16", _scan, differentiable=True)}
