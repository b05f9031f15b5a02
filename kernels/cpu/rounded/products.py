"""Products of weights that are data and scale, in C++: 8-bit and 4-bit integers, and e4m3."""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_void_p
from functools import cache

import torch
from torch import Tensor

from ...reference import FUNCTIONS as REFERENCE
from ...scaled import E4M3, INT4, INT8, Scaled, quantize_int4, quantize_int8
from ..call import I, L, P, declare, empty, failure, normal, plain, run
from ..native import TYPES, native

STORED = {**TYPES, E4M3: 2, INT8: 3, INT4: 4}
"""Type of a weight's numbers -> `Type` of src/scalar.h."""
WIDEST = 1 << 17
"""Products of two 8-bit integers of which 32 bits hold every sum."""
TOLERANCE = 3e-2
"""Of the self-check: a number at the edge between two integers may fall to either side."""
declare(
    rounded_linear=(P, I, L, P, L, L, P, I),
    rounded_mlp=(P, I, L, P, P, L, L, P, I),
    rounded_experts=(P, I, P, P, P, P, L, L, L, L, L, P),
)


class Weights(ctypes.Structure):
    """A matrix, or one an expert, as src/rounded.inl has it."""

    _fields_ = [
        ("data", c_void_p),
        ("scale", c_void_p),
        ("input_scale", c_void_p),
        ("type", c_int64),
        ("outputs", c_int64),
    ]

    @classmethod
    def of(cls, weight: Scaled) -> Weights:
        """Points at the weight, which must live as long as this is used."""
        given = weight.input_scale
        return cls(
            weight.data.data_ptr(), weight.scale.data_ptr(), 0 if given is None else given.data_ptr(),
            STORED[weight.dtype], weight.shape[-2],
        )  # fmt: skip


def fits(weight: object) -> bool:
    """Whether C++ can read a weight: on the CPU, in one piece, with scales of float32, one for all experts' inputs."""
    if not isinstance(weight, Scaled) or weight.data.device.type != "cpu" or not weight.shape.numel():
        return False
    if weight.shape[-1] > WIDEST or not (weight.data.is_contiguous() and weight.scale.is_contiguous()):
        return False
    if weight.dtype != E4M3:
        return True
    given = weight.input_scale
    if weight.scale.dtype != torch.float32 or weight.scale.dim() != weight.data.dim() - 2:
        return False
    return given is None or (given.dtype == torch.float32 and not given.dim())


def linear(x: Tensor, weight: Scaled) -> Tensor | None:
    """See nano3.kernels.linear; None where PyTorch must do it."""
    outputs, width = weight.shape
    if not (x.numel() and x.shape[-1] == width and plain(x) and fits(weight)) or problem() is not None:
        return None
    y = empty(*x.shape[:-1], outputs, dtype=x.dtype)
    done = run(
        "rounded_linear", x.data_ptr(), TYPES[x.dtype], x.numel() // width, ctypes.byref(Weights.of(weight)), outputs,
        width, y.data_ptr(), TYPES[y.dtype], exact=x.dtype == torch.float32,
    )  # fmt: skip
    return y if done else None


def squared_relu_mlp(x: Tensor, up: Scaled, down: Scaled) -> Tensor | None:
    """See nano3.kernels.squared_relu_mlp; None where PyTorch must do it."""
    hidden, width = up.shape
    known = x.numel() and x.shape[-1] == width and plain(x) and down.shape == (width, hidden)
    if not (known and fits(up) and fits(down)) or problem() is not None:
        return None
    y = torch.empty_like(x)
    done = run(
        "rounded_mlp", x.data_ptr(), TYPES[x.dtype], x.numel() // width, ctypes.byref(Weights.of(up)),
        ctypes.byref(Weights.of(down)), hidden, width, y.data_ptr(), TYPES[y.dtype], exact=x.dtype == torch.float32,
    )  # fmt: skip
    return y if done else None


def grouped_mlp(x: Tensor, up: Scaled, down: Scaled, expert_ids: Tensor, weights: Tensor) -> Tensor | None:
    """See nano3.kernels.grouped_mlp; None where PyTorch must do it."""
    n_experts, hidden, width = up.shape
    known = x.numel() and x.shape[-1] == width and plain(x, weights) and down.shape == (n_experts, width, hidden)
    known = known and weights.dtype == torch.float32 and weights.shape == expert_ids.shape and expert_ids.numel()
    known = known and expert_ids.dtype == torch.int64 and len(x) == len(expert_ids)
    if not (known and fits(up) and fits(down)) or problem() is not None:
        return None
    y, ids = torch.empty_like(x), expert_ids.contiguous()
    done = run(
        "rounded_experts", x.data_ptr(), TYPES[x.dtype], ctypes.byref(Weights.of(up)), ctypes.byref(Weights.of(down)),
        ids.data_ptr(), weights.data_ptr(), *ids.shape, n_experts, hidden, width, y.data_ptr(),
        exact=x.dtype == torch.float32,
    )  # fmt: skip
    return y if done else None


@cache
def problem() -> str | None:
    """Why products of scaled weights are PyTorch's: no library, or it computes something else than the reference."""
    if native().library is None:
        return native().reason
    return failure(_error, TOLERANCE)


def _error(dtype: torch.dtype) -> float:
    """Largest difference from the reference, relative to the largest value, of every format."""
    g = torch.Generator().manual_seed(0)
    x, matrix, worst = normal(g, dtype, 5, 96), normal(g, torch.float32, 35, 96), 0.0
    scale = (matrix.abs().amax() / 448).reshape(())
    e4m3 = Scaled((matrix / scale).to(E4M3), scale, torch.full((), 0.01, dtype=torch.float32, device="cpu"))
    for weight in (quantize_int8(matrix), quantize_int4(matrix), e4m3):
        for rows in (x[:1], x):
            y, expected = empty(len(rows), 35, dtype=dtype), REFERENCE["linear"](rows, weight)
            run(
                "rounded_linear", rows.data_ptr(), TYPES[dtype], len(rows), ctypes.byref(Weights.of(weight)), 35, 96,
                y.data_ptr(), TYPES[dtype], exact=dtype == torch.float32,
            )  # fmt: skip
            if not bool(torch.isfinite(y).all()):
                return float("inf")
            worst = max(worst, float((y.float() - expected.float()).abs().max() / expected.float().abs().max()))
    return worst
