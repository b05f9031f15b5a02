"""Routed experts without gradient: four kernels, whose grids depend on sizes alone, so that a CUDA graph can hold them.

The first product reads tokens where they lie and writes relu^2 of its sums; the second writes each choice's share to
its token; the last kernel adds a token's shares in float32, in the order of its choices.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..eager import FUNCTIONS as EAGER
from ..scaled import Scaled, Weight
from .call import Kernel, fits, guarded, launch, normal, power_of_2, shaped, wants_gradient
from .expert_kernels import product_kernel, sort_kernel, sum_kernel

CHUNK = 2048
"""Choices that a program looks at a time while it sorts."""
MOST_EXPERTS, MOST_CHOSEN = 1024, 32
"""A program holds a number for each expert and unrolls the loop over a token's choices."""


class Tile(NamedTuple):
    """What a program multiplies: rows, columns and depth of its block."""

    ROWS: int
    COLUMNS: int
    DEPTH: int
    num_warps: int
    num_stages: int

    def options(self, dtype: torch.dtype) -> dict[str, Any]:
        """Of a launch. In float32, products of three of tf32, and of less depth: numbers are twice as wide."""
        fields = self._asdict()
        if dtype == torch.float32:
            fields |= {"DEPTH": 32, "num_stages": 2, "COLUMNS": 64, "ROWS": min(self.ROWS, 64), "num_warps": 4}
        return {**fields, "SWAPPED": fields["ROWS"] < 64, "DOT": "tf32x3" if dtype == torch.float32 else "ieee"}


TILES = {8: Tile(16, 64, 128, 4, 4), 24: Tile(32, 64, 128, 4, 3), 96: Tile(64, 128, 64, 4, 3)}
"""Most choices an expert on average -> tile. Below 64 rows the time goes into reading matrices: one is the left factor,
and up to 80 KiB are on their way to each program. By reason, not measured."""
LARGEST = Tile(128, 128, 64, 8, 3)


def grouped_mlp(x: Tensor, up: Weight, down: Weight, expert_ids: Tensor, weights: Tensor) -> Tensor:
    """See nano3.kernels.grouped_mlp. An expert that is not there makes nan of its token."""
    if isinstance(up, Scaled) or isinstance(down, Scaled) or not _takes(x, up, down, expert_ids, weights):
        return EAGER["grouped_mlp"](x, up, down, expert_ids, weights)
    (S, top_k), (E, F, D) = expert_ids.shape, up.shape
    x, ids, choices = x if x.stride(1) == 1 else x.contiguous(), expert_ids.contiguous(), S * top_k
    order = torch.empty(choices, dtype=torch.int32, device=x.device)
    ends = torch.empty(E, dtype=torch.int32, device=x.device)
    launch(sort_kernel, (E,), ids, order, ends, choices, CHUNK=min(CHUNK, power_of_2(choices)), num_warps=4)
    hidden = torch.empty((choices, F), dtype=x.dtype, device=x.device)
    _product(x, up, order, ends, hidden, top_k, first=True)
    parts = torch.empty((choices, D), dtype=x.dtype, device=x.device)
    _product(hidden, down, order, ends, parts, top_k, first=False)
    out = torch.empty((S, D), dtype=x.dtype, device=x.device)
    block = min(power_of_2(D), 1024)
    launch(
        sum_kernel, (S, -(-D // block)), parts, ids, weights.contiguous(), out, E, D, K=top_k, BLOCK=block, num_warps=4
    )  # fmt: skip
    return out


def _product(x: Tensor, matrices: Tensor, order: Tensor, ends: Tensor, out: Tensor, top_k: int, *, first: bool) -> None:
    """Each program takes a tile of columns of one block of choices: at most as many blocks as are full, and one more an
    expert that has any."""
    (E, width, depth), choices = matrices.shape, len(order)
    tile = next((tile for most, tile in TILES.items() if choices <= most * E), LARGEST).options(x.dtype)
    blocks = choices // tile["ROWS"] + min(E, choices)
    launch(
        product_kernel, (blocks * -(-width // tile["COLUMNS"]),), x, matrices, order, ends, out, E, top_k, width, depth,
        x.stride(0), *matrices.stride()[:2], FIRST=first, EXPERTS=power_of_2(E), **tile,
    )  # fmt: skip


def _takes(x: Tensor, up: Tensor, down: Tensor, expert_ids: Tensor, weights: Tensor) -> bool:
    """Whether the kernels can: one type, dense rows of matrices, shapes that go together."""
    if not fits(x, up, down, weights) or wants_gradient(x, up, down, weights) or not (x.numel() and weights.numel()):
        return False
    (S, D), (E, F) = x.shape, up.shape[:2]
    choices = (S, expert_ids.shape[1])
    shapes = shaped((up, (E, F, D)), (down, (E, D, F)), (expert_ids, choices), (weights, choices))
    same = x.dtype == up.dtype == down.dtype and expert_ids.device == x.device and F > 0
    dense = up.stride(2) == 1 and down.stride(2) == 1 and not expert_ids.is_floating_point()
    return shapes and same and dense and E <= MOST_EXPERTS and choices[1] <= MOST_CHOSEN


def _few(g: torch.Generator, dtype: torch.dtype) -> tuple:
    ids = torch.tensor([[0, 4], [4, 1], [1, 0], [4, 0], [2, 4]], device="cpu")  # none has expert 3
    up, down = normal(g, dtype, 5, 70, 36) * 0.2, normal(g, dtype, 5, 36, 70) * 0.2
    return normal(g, dtype, 5, 36), up, down, ids, normal(g, torch.float32, 5, 2)


def _many(g: torch.Generator, dtype: torch.dtype) -> tuple:
    up, down = normal(g, dtype, 2, 36, 36) * 0.2, normal(g, dtype, 2, 36, 36) * 0.2
    ids = torch.arange(7 * 32, device="cpu").view(7, 32) % 11 // 9  # an expert counts as often as it is there
    return normal(g, dtype, 7, 36), up, down, ids, normal(g, torch.float32, 7, 32)


KERNELS = {
    "grouped_mlp": Kernel(
        guarded(grouped_mlp, EAGER["grouped_mlp"]), "passes without gradient", _few, other_cases=(_many,)
    ),
}
