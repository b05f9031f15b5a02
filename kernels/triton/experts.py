"""Routed experts without gradient: four kernels, whose grids depend on sizes alone, so that a CUDA graph can hold them.

The first product reads tokens where they lie and writes relu^2 of its sums; the second writes each choice's share to
its token; the last kernel adds a token's shares in float32, in the order of its choices.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from ..eager import FUNCTIONS as EAGER
from ..eager import fp8
from ..scaled import E4M3, Scaled, Weight
from .call import Kernel, fits, guarded, launch, normal, power_of_2, shaped, wants_gradient
from .expert_kernels import product_kernel, sort_kernel, sum_kernel

CHUNK, SMALL_CHUNK = 2048, 128
"""Choices that a program looks at a time while it sorts; the small one where there are no more."""
MOST_EXPERTS, MOST_CHOSEN = 1024, 32
"""A program holds a number for each expert and unrolls the loop over a token's choices."""
NAMES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


class Tile(NamedTuple):
    """What a program multiplies: rows, columns and depth of its block."""

    ROWS: int
    COLUMNS: int
    DEPTH: int
    num_warps: int
    num_stages: int

    def options(self, dtype: torch.dtype) -> dict[str, Any]:
        """Of a launch. Numbers of float32 are twice as wide, those of e4m3 half as wide. In float32, products of three
        of tf32."""
        fields = self._asdict()
        if dtype == torch.float32:
            fields |= {"DEPTH": 32, "num_stages": 2, "COLUMNS": 64, "ROWS": min(self.ROWS, 64), "num_warps": 4}
        elif dtype == E4M3:
            fields |= {"DEPTH": 128, "num_stages": 6 if self.ROWS < 64 else 3}
        return {**fields, "SWAPPED": fields["ROWS"] < 64, "DOT": "tf32x3" if dtype == torch.float32 else "ieee"}


TILES = {8: Tile(16, 64, 128, 4, 4), 24: Tile(32, 64, 128, 4, 3), 96: Tile(64, 128, 64, 4, 3)}
"""Most choices an expert on average -> tile. Below 64 rows the time goes into reading matrices: one is the left factor,
and up to 80 KiB are on their way to each program. By reason, not measured."""
LARGEST = Tile(128, 128, 64, 8, 3)


class _Matrices(NamedTuple):
    """Of all experts: floats, or e4m3 with scales and the scale of what they multiply."""

    data: Tensor
    scale: Tensor | None = None
    input_scale: Tensor | None = None


def _matrices(weight: Weight) -> _Matrices | None:
    """None where the kernels have no products of this kind."""
    if not isinstance(weight, Scaled):
        return _Matrices(weight)
    return _Matrices(weight.data, weight.scale, weight.input_scale) if fp8.is_static(weight) else None


def grouped_mlp(x: Tensor, up: Weight, down: Weight, expert_ids: Tensor, weights: Tensor) -> Tensor:
    """See nano3.kernels.grouped_mlp. An expert that is not there makes nan of its token."""
    first, second = _matrices(up), _matrices(down)
    if first is None or second is None or not _takes(x, first, second, expert_ids, weights):
        return EAGER["grouped_mlp"](x, up, down, expert_ids, weights)
    (S, top_k), (E, F, D) = expert_ids.shape, up.shape
    ids, choices = expert_ids.contiguous(), S * top_k
    order = torch.empty(choices, dtype=torch.int32, device=x.device)
    ends = torch.empty(E, dtype=torch.int32, device=x.device)
    chunk = SMALL_CHUNK if choices <= SMALL_CHUNK else CHUNK
    launch(sort_kernel, (E,), ids, order, ends, choices, CHUNK=chunk, num_warps=4)
    rows = x if x.stride(1) == 1 else x.contiguous()
    if first.input_scale is not None:
        rows = fp8.rounded(x, first.input_scale)
    hidden = torch.empty((choices, F), dtype=rows.dtype, device=x.device)
    _product(rows, first, second.input_scale, order, ends, hidden, x.dtype, top_k, first=True)
    parts = torch.empty((choices, D), dtype=x.dtype, device=x.device)
    _product(hidden, second, None, order, ends, parts, x.dtype, top_k, first=False)
    out = torch.empty((S, D), dtype=x.dtype, device=x.device)
    block = min(power_of_2(D), 1024)
    launch(
        sum_kernel, (S, -(-D // block)), parts, ids, weights.contiguous(), out, E, D, K=top_k, BLOCK=block, num_warps=4
    )  # fmt: skip
    return out


def _product(
    x: Tensor, matrices: _Matrices, next_scale: Tensor | None, order: Tensor, ends: Tensor, out: Tensor,
    dtype: torch.dtype, top_k: int, *, first: bool,
) -> None:  # fmt: skip
    """Each program takes a tile of columns of one block of choices: at most as many blocks as are full, and one more an
    expert that has any. `next_scale`: of the next product's inputs."""
    data, scale, input_scale = matrices
    (E, width, depth), choices, scales = data.shape, len(order), x
    if scale is not None and input_scale is not None:
        scales = (scale.float() * input_scale.float()).expand(E).contiguous()
    tile = next((tile for most, tile in TILES.items() if choices <= most * E), LARGEST).options(x.dtype)
    blocks = choices // tile["ROWS"] + min(E, choices)
    launch(
        product_kernel, (blocks * -(-width // tile["COLUMNS"]),), x, data, order, ends, scales,
        x if next_scale is None else next_scale.float(), out, E, top_k, width, depth, x.stride(0), *data.stride()[:2],
        FIRST=first, SCALED=scale is not None, EXPERTS=power_of_2(E), **tile, TYPE=NAMES[dtype],
    )  # fmt: skip


def _takes(x: Tensor, up: _Matrices, down: _Matrices, expert_ids: Tensor, weights: Tensor) -> bool:
    """Whether the kernels can: matrices of one type or of e4m3, dense rows of them, shapes that go together."""
    if not fits(x, weights) or not (x.numel() and weights.numel()) or (up.scale is None) != (down.scale is None):
        return False
    if up.scale is None:
        types = x.dtype == up.data.dtype == down.data.dtype
    else:
        types = x.dtype in fp8.TYPES and _multiplies_e4m3(x.device)
    (S, D), (E, F) = x.shape, up.data.shape[:2]
    choices = (S, expert_ids.shape[1])
    matrices = shaped((up.data, (E, F, D)), (down.data, (E, D, F)))
    dense = up.data.stride(2) == 1 and down.data.stride(2) == 1 and not expert_ids.is_floating_point()
    return (
        types
        and matrices
        and shaped((expert_ids, choices), (weights, choices))
        and dense
        and all(t.device == x.device for t in (up.data, down.data, expert_ids))
        and F > 0
        and E <= MOST_EXPERTS
        and choices[1] <= MOST_CHOSEN
        and not wants_gradient(x, up.data, down.data, weights)
    )


def _multiplies_e4m3(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= fp8.OLDEST


def _few(g: torch.Generator, dtype: torch.dtype) -> tuple:
    ids = torch.tensor([[0, 4], [4, 1], [1, 0], [4, 0], [2, 4]], device="cpu")  # none has expert 3
    up, down = normal(g, dtype, 5, 70, 36) * 0.2, normal(g, dtype, 5, 36, 70) * 0.2
    return normal(g, dtype, 5, 36), up, down, ids, normal(g, torch.float32, 5, 2)


def _many(g: torch.Generator, dtype: torch.dtype) -> tuple:
    up, down = normal(g, dtype, 2, 36, 36) * 0.2, normal(g, dtype, 2, 36, 36) * 0.2
    ids = torch.arange(7 * 32, device="cpu").view(7, 32) % 11 // 9  # an expert counts as often as it is there
    return normal(g, dtype, 7, 36), up, down, ids, normal(g, torch.float32, 7, 32)


def _e4m3(g: torch.Generator, dtype: torch.dtype) -> tuple | None:
    """Products are integers: whether numbers are rounded to e4m3 from float64 or from less gives the same."""
    if dtype not in fp8.TYPES:
        return None
    ids, weights = _few(g, dtype)[3:]
    up = normal(g, torch.float32, 5, 80, 36).round().clamp(-1, 1).to(E4M3)
    down = (20 * normal(g, torch.float32, 5, 36, 80)).to(E4M3)
    scales, scale = torch.tensor([4.0, 2, 8, 4, 4], device="cpu"), torch.tensor(0.5, device="cpu")
    x = normal(g, dtype, 5, 36).round() / 4
    return x, Scaled(up, scales, scale / 2), Scaled(down, scales / 100, scale), ids, weights


KERNELS = {
    "grouped_mlp": Kernel(
        guarded(grouped_mlp, EAGER["grouped_mlp"]), "passes without gradient", _few, other_cases=(_many, _e4m3)
    ),
}
