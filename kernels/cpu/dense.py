"""Dense products of few rows, in C++."""

from __future__ import annotations

import torch
from torch import Tensor

from ..eager import FUNCTIONS as EAGER
from ..scaled import Scaled, Weight
from .call import I, Kernel, L, P, declare, empty, normal, plain, readable, run
from .mlp import squared_relu_rows
from .native import TYPES, native
from .rounded import products as rounded

MOST_ROWS = 64
"""Products with more rows go to PyTorch, whose blocking pays from there on."""
MOST_ROWS_BFLOAT16 = 128
"""The same for bfloat16 weights in float32 products, for which PyTorch widens all of them first."""
declare(
    linear=(P, I, L, P, I, L, L, P, I),
    squared_relu_mlp=(P, I, L, P, P, I, L, L, P, I),
)


def linear(x: Tensor, weight: Weight) -> Tensor:
    """See nano3.kernels.linear."""
    if isinstance(weight, Scaled):
        y = rounded.linear(x, weight)
        return EAGER["linear"](x, weight) if y is None else y
    outputs, width = weight.shape
    rows = x.numel() // width if width else 0
    if not 0 < rows <= _most_rows(x, weight) or x.shape[-1] != width or not plain(x, weight):
        return EAGER["linear"](x, weight)
    y = empty(*x.shape[:-1], outputs, dtype=x.dtype)
    done = run(
        "linear", x.data_ptr(), TYPES[x.dtype], rows, weight.data_ptr(), TYPES[weight.dtype], outputs, width,
        y.data_ptr(), TYPES[y.dtype], exact=x.dtype == torch.float32,
    )  # fmt: skip
    return y if done else EAGER["linear"](x, weight)


def _most_rows(x: Tensor, weight: Tensor) -> int:
    widened = weight.dtype == torch.bfloat16 and not native().rounds(x.dtype)
    return MOST_ROWS_BFLOAT16 if widened else MOST_ROWS


def squared_relu_mlp(x: Tensor, up: Weight, down: Weight) -> Tensor:
    """See nano3.kernels.squared_relu_mlp."""
    if isinstance(up, Scaled) or isinstance(down, Scaled):
        y = None
        if isinstance(up, Scaled) and isinstance(down, Scaled):
            y = rounded.squared_relu_mlp(x, up, down)
        return linear(linear(x, up).relu().square(), down) if y is None else y
    hidden, width = up.shape
    rows = x.numel() // width if width else 0
    fits = rows and hidden and x.shape[-1] == width and down.shape == (width, hidden) and up.dtype == down.dtype
    if not fits or not readable(x, up, down) or torch.compiler.is_compiling():
        return EAGER["squared_relu_mlp"](x, up, down)
    if rows > MOST_ROWS or not plain(x, up, down):
        return squared_relu_rows(x.contiguous(), up.contiguous(), down.contiguous())
    y = torch.empty_like(x)
    done = run(
        "squared_relu_mlp", x.data_ptr(), TYPES[x.dtype], rows, up.data_ptr(), down.data_ptr(), TYPES[up.dtype],
        hidden, width, y.data_ptr(), TYPES[y.dtype], exact=x.dtype == torch.float32,
    )  # fmt: skip
    return y if done else EAGER["squared_relu_mlp"](x, up, down)


def _linear(g: torch.Generator, dtype: torch.dtype) -> tuple:
    return normal(g, dtype, 7, 37), normal(g, dtype, 21, 37)


def _mlp(g: torch.Generator, dtype: torch.dtype) -> tuple:
    return normal(g, dtype, 3, 19), normal(g, dtype, 70, 19), normal(g, dtype, 19, 70)


KERNELS = {
    "linear": Kernel(linear, f"up to {MOST_ROWS} rows ({MOST_ROWS_BFLOAT16} of bfloat16 weights)", _linear),
    "squared_relu_mlp": Kernel(
        squared_relu_mlp, f"the activation, and the products of up to {MOST_ROWS} rows", _mlp, differentiable=True
    ),
}
