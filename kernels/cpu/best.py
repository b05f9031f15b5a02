"""The most probable token of each row of logits, in C++."""

from __future__ import annotations

import torch
from torch import Tensor

from ..eager import FUNCTIONS as EAGER
from .call import Kernel, L, P, declare, empty, normal, plain, run

declare(best_tokens=(P, L, L, L, P, P))


def best_tokens(logits: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """See nano3.kernels.best_tokens."""
    if logits.dtype != torch.float32 or logits.dim() != 2 or not logits.numel() or limit < 1 or not plain(logits):
        return EAGER["best_tokens"](logits, limit)
    rows, width = logits.shape
    ids, totals = empty(rows, dtype=torch.int64), empty(rows)
    run("best_tokens", logits.data_ptr(), rows, width, min(limit, width), ids.data_ptr(), totals.data_ptr())
    return ids, totals


def _best(g: torch.Generator, dtype: torch.dtype) -> tuple:
    return normal(g, dtype, 3, 67), 65


KERNELS = {"best_tokens": Kernel(best_tokens, "float32", _best)}
