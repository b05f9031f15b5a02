"""Each kernel against the reference on a small case, once a process, before it is used."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from ..reference import FUNCTIONS as REFERENCE
from . import ops
from .native import native

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
Case = Callable[[torch.Generator, torch.dtype], tuple]


@cache
def problem(op: str) -> str | None:
    """Why the kernel must not be used: no library, or it computes something else than the reference."""
    if native().library is None:
        return native().reason
    for dtype, tolerance in TOLERANCE.items():
        error = _error(op, dtype)
        if not error <= tolerance:
            return f"its self-check failed on {native().isa}: {dtype} differs by {error:.2g} from the reference"
    return None


@torch.inference_mode()
def _error(op: str, dtype: torch.dtype) -> float:
    """Largest difference of results and updated arguments, relative to the largest value."""
    case = CASES[op](torch.Generator().manual_seed(0), dtype)
    outputs = []
    for function in (ops.FUNCTIONS[op], REFERENCE[op]):
        arguments = [a.clone() if isinstance(a, Tensor) else a for a in case]
        outputs.append([function(*arguments), *(a for a in arguments if isinstance(a, Tensor))])
    worst = 0.0
    for got, expected in zip(*outputs, strict=True):
        if not bool(torch.isfinite(got).all()):
            return float("inf")
        if expected.numel():
            scale = expected.float().abs().max().clamp_min(1e-6)
            worst = max(worst, float((got.float() - expected.float()).abs().max() / scale))
    return worst


def _linear(g: torch.Generator, dtype: torch.dtype) -> tuple:
    return _normal(g, dtype, 7, 37), _normal(g, dtype, 21, 37)


def _mlp(g: torch.Generator, dtype: torch.dtype) -> tuple:
    return _normal(g, dtype, 3, 19), _normal(g, dtype, 70, 19), _normal(g, dtype, 19, 70)


def _norm(g: torch.Generator, dtype: torch.dtype) -> tuple:
    return _normal(g, dtype, 3, 35), _normal(g, dtype, 35), 1e-5


def _experts(g: torch.Generator, dtype: torch.dtype) -> tuple:
    ids = torch.tensor([[0, 2], [2, 1], [2, 0], [4, 2]])
    weights = torch.rand(4, 2, generator=g)
    return _normal(g, dtype, 4, 19), _normal(g, dtype, 5, 33, 19), _normal(g, dtype, 5, 19, 33), ids, weights


def _mamba(g: torch.Generator, dtype: torch.dtype) -> tuple:
    B, H, P, N, G, W, slots = 3, 4, 5, 19, 2, 4, 5
    C = H * P + 2 * G * N
    rows = _normal(g, dtype, B, C), _normal(g, dtype, B, H), _normal(g, dtype, B, H * P)
    states = _normal(g, dtype, slots, C, W - 1), _normal(g, torch.float32, slots, H, P, N)
    heads = (_normal(g, torch.float32, H) for _ in range(3))
    return (
        *rows, *states, torch.tensor([3, 0, 4]), _normal(g, dtype, C, W), _normal(g, dtype, C), *heads,
        _normal(g, dtype, H * P), 1e-5, G,
    )  # fmt: skip


def _attention(g: torch.Generator, dtype: torch.dtype) -> tuple:
    table = torch.tensor([[3, 0, 5], [2, 1, 4]])
    pages = (_normal(g, dtype, 6, 4, 2, 11) for _ in range(2))
    return _normal(g, dtype, 2, 6, 11), *pages, table, [1, 1], [10, 5]


CASES: dict[str, Case] = {
    "linear": _linear,
    "squared_relu_mlp": _mlp,
    "rms_norm": _norm,
    "grouped_mlp": _experts,
    "mamba_step": _mamba,
    "paged_attention": _attention,
}


def _normal(g: torch.Generator, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g).to(dtype)
