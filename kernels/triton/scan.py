"""State-space dual scan: one pass for the states, one for all chunks at once, forward and backward.

The backward keeps only the inputs: it makes the states anew, and their gradients by the same kernel run backwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..common import segments
from ..eager import FUNCTIONS as EAGER
from .call import Kernel, fits, guarded, launch, normal, power_of_2, shaped
from .scan_kernels import chain, group_gradients, head_gradients, outputs

LONGEST, LONGEST_FLOAT32, SHORTEST = 64, 32, 16
"""Chunk lengths. 64 rows are what a matrix unit of Hopper takes; (128, 128) matrices do not fit the registers, nor
float32 ones of 64 rows the shared memory of smaller GPUs."""
PART = 32
"""Width of the part of a head that one program carries from chunk to chunk: two programs a head of 64."""
PART_OF_STATE = 64
"""Width of the part of N that the gradients' kernels hold at a time."""
WIDEST_HEAD, WIDEST_STATE = 64, 128
WARPS = {"chain": 4, "outputs": 4, "group_gradients": 8, "head_gradients": 8}


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
    inputs = (x, dt, A, B, C, D, dt_bias, initial_state)
    (batch, T, H, P), (G, N) = x.shape, B.shape[2:]
    small = P <= WIDEST_HEAD and N <= WIDEST_STATE and chunk_size >= SHORTEST
    heads, groups = [(t, (H,)) for t in (A, D, dt_bias)], [(t, (batch, T, G, N)) for t in (B, C)]
    shapes = shaped((dt, (batch, T, H)), *heads, *groups, (initial_state, (batch, H, P, N)))
    if not (small and shapes and fits(*inputs) and all(t is None or t.numel() for t in inputs)):
        options = {"initial_state": initial_state, "document_ids": document_ids, "chunk_size": chunk_size}
        return EAGER["ssd_scan"](x, dt, A, B, C, D, dt_bias, **options)
    segment = None if document_ids is None else segments(document_ids).int()
    longest = LONGEST_FLOAT32 if x.dtype == torch.float32 else LONGEST
    length = 1 << (min(chunk_size, longest).bit_length() - 1)
    return _Scan.apply(*inputs, segment, length)


@dataclass
class _Launches:
    """One scan's tensors with dense last dimensions, and the launches of its kernels."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    dt_bias: Tensor
    segment: Tensor | None
    length: int

    def __post_init__(self) -> None:
        self.x, self.dt, self.B, self.C = (_dense(m) for m in (self.x, self.dt, self.B, self.C))
        self.A, self.D, self.dt_bias = (m.contiguous() for m in (self.A, self.D, self.dt_bias))
        self.batch, self.T, self.H, self.P = self.x.shape
        self.G, self.N = self.B.shape[2:]
        self.n_chunks = -(-self.T // self.length)
        self.sizes = (self.T, self.H, self.H // self.G, self.n_chunks)
        self.steps = self.dt.stride()[:2]
        self.constants = {
            "P": self.P,
            "N": self.N,
            "BN": max(16, power_of_2(self.N)),
            "L": self.length,
            "HAS_SEG": self.segment is not None,
            "DOT": "tf32x3" if self.x.dtype == torch.float32 else "tf32",  # of what is float32
        }
        self.block = max(16, power_of_2(self.P))

    @property
    def documents(self) -> Tensor:
        """Document numbers; where there are none, any tensor, which the kernels do not read."""
        return self.dt if self.segment is None else self.segment

    def chain(self, v: Tensor, k: Tensor, start: Tensor | None, *, backward: bool = False) -> tuple[Tensor, Tensor]:
        """States (B, H, chunks, P, N) in x.dtype, and the last one (B, H, P, N) fp32; see the kernel."""
        shape = (self.batch, self.H, self.n_chunks, self.P, self.N)
        states = torch.empty(shape, dtype=self.x.dtype, device=self.x.device)
        end = torch.empty((self.batch, self.H, self.P, self.N), dtype=torch.float32, device=self.x.device)
        part = min(PART, self.block)
        launch(
            chain, (self.H, -(-self.P // part), self.batch), v, k, self.dt, self.dt_bias, self.A,
            self.documents, end if start is None else start.contiguous(), states, end, *self.sizes,
            *v.stride()[:3], *k.stride()[:3], *self.steps, BP=part, HAS_START=start is not None, BACKWARD=backward,
            num_warps=WARPS["chain"], **self.constants,
        )  # fmt: skip
        return states, end

    def outputs(self, states: Tensor) -> Tensor:
        """y (B, T, H, P)."""
        y = torch.empty(self.x.shape, dtype=self.x.dtype, device=self.x.device)
        launch(
            outputs, (self.n_chunks, self.H, self.batch), self.x, self.dt, self.A, self.B, self.C, self.D,
            self.dt_bias, self.documents, states, y, *self.sizes, *self.x.stride()[:3], *self.steps,
            *self.B.stride()[:3], *self.C.stride()[:3], BP=self.block, num_warps=WARPS["outputs"], **self.constants,
        )  # fmt: skip
        return y

    def gradients(self, states: Tensor, dstates: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
        """Gradients of x, dt, A, B, C, D and dt_bias, in these types but for fp32 sums."""
        tokens, fp32 = (self.batch, self.T, self.H), {"dtype": torch.float32, "device": self.x.device}
        dx = torch.empty(self.x.shape, dtype=self.x.dtype, device=self.x.device)
        ddt, dlog = (torch.empty(tokens, **fp32) for _ in range(2))
        dB, dC = (torch.empty((*tokens, self.N), **fp32) for _ in range(2))
        dA, dD = (torch.empty((self.batch, self.H, self.n_chunks), **fp32) for _ in range(2))
        views = (*self.x.stride()[:3], *self.steps, *self.B.stride()[:3], *self.C.stride()[:3], *dy.stride()[:3])
        options = {"BP": self.block, "PART": min(PART_OF_STATE, self.constants["BN"]), **self.constants}
        grid = (self.n_chunks, self.H, self.batch)
        launch(
            group_gradients, grid, self.x, self.dt, self.A, self.B, self.C, self.dt_bias, self.documents, states,
            dstates, dy, dB, dC, dlog, *self.sizes, *views, num_warps=WARPS["group_gradients"], num_stages=1, **options,
        )  # fmt: skip
        launch(
            head_gradients, grid, self.x, self.dt, self.A, self.B, self.C, self.D, self.dt_bias, self.documents,
            dstates, dy, dlog, dx, ddt, dA, dD, *self.sizes, *views, num_warps=WARPS["head_gradients"], num_stages=1,
            **options,
        )  # fmt: skip
        dB, dC = (m.unflatten(2, (self.G, -1)).sum(3) for m in (dB, dC))
        return dx, ddt, dA.sum((0, 2)), dB, dC, dD.sum((0, 2)), ddt.sum((0, 1))


def _dense(m: Tensor) -> Tensor:
    return m if m.stride(-1) == 1 else m.contiguous()


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, dt, A, B, C, D, dt_bias, initial_state, segment, length):
        scan = _Launches(x, dt, A, B, C, D, dt_bias, segment, length)
        states, final = scan.chain(scan.x, scan.B, initial_state)
        ctx.save_for_backward(x, dt, A, B, C, D, dt_bias, initial_state, segment)
        ctx.length = length
        return scan.outputs(states), final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dfinal: Tensor):
        *inputs, initial_state, segment = ctx.saved_tensors
        x, dt, A, B, C, D, dt_bias = inputs
        scan = _Launches(x, dt, A, B, C, D, dt_bias, segment, ctx.length)
        dy = _dense(dy)
        states, _ = scan.chain(scan.x, scan.B, initial_state)
        dstates, dstart = scan.chain(dy, scan.C, dfinal, backward=True)
        grads = scan.gradients(states, dstates, dy)
        typed = [grad.to(m.dtype) for grad, m in zip(grads, inputs, strict=True)]
        dinitial = None if initial_state is None else dstart.to(initial_state.dtype)
        return *typed, dinitial, None, None


def _case(g: torch.Generator, dtype: torch.dtype) -> tuple:
    B, T, H, P, G, N = 1, 70, 2, 20, 1, 20
    x, dt, k, q = (normal(g, dtype, B, T, *shape) for shape in ((H, P), (H,), (G, N), (G, N)))
    A, D, bias = (normal(g, torch.float32, H) for _ in range(3))
    return x, dt, -A.abs() - 0.5, k * 0.3, q * 0.3, D, bias


KERNELS = {
    "ssd_scan": Kernel(
        guarded(ssd_scan, EAGER["ssd_scan"]),
        f"heads up to {WIDEST_HEAD} wide with states up to {WIDEST_STATE}, forward and backward",
        _case,
        differentiable=True,
    ),
}
