"""What squared-ReLU MLPs of many rows share: products by PyTorch on reused buffers, the activation in C++."""

from __future__ import annotations

import torch
from torch import Tensor

from .call import I, L, P, declare, empty, run
from .native import TYPES

PIECE = 1024
"""Most rows of one product, so that what is read again right after it is still in the cache."""
declare(
    activate=(P, I, P, P, L, L, P, P),
    activate_backward=(P, I, P, P, L, L, P, P, I, P),
)


def pieces(start: int, end: int, product: torch.dtype) -> list[tuple[int, int]]:
    """Rows start .. end in parts of nearly equal size, none larger than the first.

    One part for products in bfloat16: a weight's gradient would be rounded after each.
    """
    rows = end - start
    count = -(-rows // PIECE) if product == torch.float32 else min(rows, 1)
    step = -(-rows // max(count, 1))
    return [(a, min(a + step, end)) for a in range(start, end, max(step, 1))]


def cast(weight: Tensor, buffer: Tensor | None) -> Tensor:
    """The weight in the type of the products."""
    return weight if buffer is None else buffer.copy_(weight)


def cast_buffer(weight: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Room for `cast`; None where the weight has the type already."""
    return None if weight.dtype == dtype else empty(weight.shape, dtype=dtype)


def activate(hidden: Tensor, active: Tensor, kept: Tensor | None, gates: Tensor | None = None, order: int = 0) -> None:
    """active (n, F) = gate * relu(hidden)^2; `kept` gets hidden in bfloat16; `order`: address of the rows' choices."""
    gate_data = gates.data_ptr() if gates is not None else None
    run(
        "activate", hidden.data_ptr(), TYPES[hidden.dtype], gate_data, order or None, *hidden.shape, active.data_ptr(),
        kept.data_ptr() if kept is not None else None,
    )  # fmt: skip


def activate_backward(
    hidden: Tensor,
    dactive: Tensor,
    active: Tensor,
    gates: Tensor | None = None,
    order: int = 0,
    dgates: Tensor | None = None,
) -> None:
    """dactive (n, F) becomes the gradient of hidden, `active` is computed anew, dgates gets the rows' places."""
    run(
        "activate_backward", hidden.data_ptr(), TYPES[hidden.dtype], gates.data_ptr() if gates is not None else None,
        order or None, *hidden.shape, dactive.data_ptr(), active.data_ptr(), TYPES[active.dtype],
        dgates.data_ptr() if dgates is not None else None,
    )  # fmt: skip
