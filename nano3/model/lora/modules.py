"""Projections with a low-rank adapter: y = W x + scale * B A x, W fixed (LoRA, arXiv 2106.09685).

They take the place of Linear and Experts, hold the same weights under the same names, and A and B beside them. Their
type differs, so that whatever fuses a plain projection's product with something else calls them instead.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nano3.kernels import Scaled, Weight, linear
from nano3.kernels.eager.grouped import leaves_unused
from nano3.kernels.narrow import narrowed
from nano3.model.hf.names import A, B
from nano3.model.layers import Linear
from nano3.model.moe import Experts
from nano3.model.shards import local_part

PROJECTIONS = ("up_proj", "down_proj")
"""Parameters of Experts that may have an adapter."""


class Adapter(NamedTuple):
    """One adapter with the weight that it belongs to."""

    name: str
    """The weight's name within its module."""
    weight: nn.Parameter
    """(..., out, in)."""
    A: nn.Parameter
    """(..., rank, in)."""
    B: nn.Parameter
    """(..., out, rank)."""


class Adapted(Protocol):
    """A module with adapters."""

    scale: float
    merged: bool
    """Whether the weights hold the adapters' product for now."""

    def adapters(self) -> Iterator[Adapter]:
        """Its adapters."""
        ...


class LoraLinear(Linear):
    """A Linear with an adapter: lora_A (rank, in) and lora_B (out, rank)."""

    def __init__(self, base: Linear, rank: int, scale: float, dropout: float) -> None:
        """Take the place of `base`, whose weight and buffers it shares."""
        nn.Module.__init__(self)
        _take_over(self, base)
        n_out, n_in = base.operand().shape
        self.lora_A = _empty(base.weight, rank, n_in)
        self.lora_B = _empty(base.weight, n_out, rank)
        self.scale, self.dropout, self.merged = scale, dropout, False

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        y = super().forward(x)
        if self.merged:
            return y
        rows = F.dropout(x, self.dropout, self.training)
        return torch.add(y, linear(linear(rows, self.lora_A), self.lora_B), alpha=self.scale)

    def adapters(self) -> Iterator[Adapter]:
        """The one adapter."""
        yield Adapter("weight", self.weight, self.lora_A, self.lora_B)


class LoraExperts(Experts):
    """Experts of which one or both projections have an adapter an expert: A (E, rank, in) and B (E, out, rank)."""

    def __init__(self, base: Experts, projections: list[str], rank: int, scale: float, dropout: float) -> None:
        """Take the place of `base`, whose weights and buffers it shares."""
        nn.Module.__init__(self)
        _take_over(self, base)
        for name in projections:
            weight = base.get_parameter(name)
            n_experts, n_out, n_in = weight.shape
            self.register_parameter(f"{name}_{A}", _empty(weight, n_experts, rank, n_in))
            self.register_parameter(f"{name}_{B}", _empty(weight, n_experts, n_out, rank))
        self.scale, self.dropout, self.merged = scale, dropout, False

    def forward(self, x: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
        """x (S, D), the experts (S, K) int64 of each token and their weights (S, K) -> (S, D), summed over experts."""
        if self.merged:
            return super().forward(x, expert_ids, weights)
        wide = torch.promote_types(x.dtype, torch.float32)
        flat = expert_ids.flatten()
        order = flat.argsort(stable=True)
        tokens = order // expert_ids.shape[1]
        # Not bincount, which makes the CPU wait for a GPU.
        counts = torch.zeros(len(self.up_proj), dtype=torch.int64, device=x.device)
        ends = counts.scatter_add_(0, flat, torch.ones_like(flat)).cumsum(0)
        hidden = self._project("up_proj", x.index_select(0, tokens), ends)
        rows = self._project("down_proj", torch.relu(hidden).square(), ends)
        gates = weights.flatten()[order].to(wide).unsqueeze(1)
        return torch.zeros(x.shape, dtype=wide, device=x.device).index_add(0, tokens, rows * gates).to(x.dtype)

    def adapters(self) -> Iterator[Adapter]:
        """Those of the projections that have one."""
        for name in PROJECTIONS:
            if f"{name}_{A}" in self._parameters:
                a, b = self.get_parameter(f"{name}_{A}"), self.get_parameter(f"{name}_{B}")
                yield Adapter(name, self.get_parameter(name), a, b)

    def _project(self, name: str, rows: Tensor, ends: Tensor) -> Tensor:
        """rows (R, in), those of an expert together and ending at ends (E,) -> (R, out)."""
        y = grouped_linear(rows, self.operand(name), ends)
        if f"{name}_{A}" not in self._parameters:
            return y
        rows = F.dropout(rows, self.dropout, self.training)
        low = grouped_linear(rows, self.get_parameter(f"{name}_{A}"), ends)
        return torch.add(y, grouped_linear(low, self.get_parameter(f"{name}_{B}"), ends), alpha=self.scale)


def grouped_linear(rows: Tensor, weight: Weight, ends: Tensor) -> Tensor:
    """rows (R, in) of several experts, those of expert e from ends[e-1] to ends[e], by weight (E, out, in) -> (R, out);
    differentiable."""
    if rows.device.type != "cpu" and not isinstance(weight, Scaled) and _aligned(rows, weight):
        if not weight.requires_grad:
            weight = narrowed(weight, rows.dtype)
        elif leaves_unused(rows.device):
            weight = trained_where_used(weight, ends)
        return F.grouped_mm(rows, weight.to(rows.dtype).transpose(1, 2), offs=ends.to(torch.int32))
    bounds = [0, *ends.tolist()]
    parts = [linear(rows[a:b], weight[e]) for e, (a, b) in enumerate(pairwise(bounds)) if b > a]
    return torch.cat(parts) if parts else rows.new_zeros(0, weight.shape[1])


def trained_where_used(weight: Tensor, ends: Tensor) -> Tensor:
    """The same weight (E, ...), whose gradient is 0 for experts without rows, whatever comes from its product."""
    used = ends.diff(prepend=ends.new_zeros(1)) > 0
    return torch.where(used[:, None, None], weight, weight.detach())


def _aligned(rows: Tensor, weight: Tensor) -> bool:
    """Whether a grouped product takes these: its rows begin at multiples of 16 bytes."""
    return rows.dtype == torch.bfloat16 and all(size % 8 == 0 for size in weight.shape[1:])


def init_adapter(adapter: Adapter, name: str, seed: int) -> None:
    """A uniform in +-1/sqrt(in), B 0, so that nothing is changed at first; of shards, each rank fills its own.

    Each A depends only on `seed` and its module's name.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) ^ (seed * 0x9E3779B1 & 0xFFFFFFFF))
    bound = 1 / math.sqrt(adapter.A.shape[-1])
    values = torch.empty(adapter.A.shape).uniform_(-bound, bound, generator=generator)
    with torch.no_grad():
        local, where = local_part(adapter.A)
        local.copy_(values[where])
        local_part(adapter.B)[0].zero_()


def _take_over(module: nn.Module, base: nn.Module) -> None:
    for name, parameter in base._parameters.items():
        module.register_parameter(name, parameter)
    for name, buffer in base._buffers.items():
        module.register_buffer(name, buffer)
    module.train(base.training)


def _empty(weight: Tensor, *shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=torch.float32, device=weight.device))
