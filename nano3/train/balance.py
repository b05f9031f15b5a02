"""Aux-loss-free expert balance: a selection bias moved by the sign of the load error (report section 2.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@torch.no_grad()
def update_biases(biases: Sequence[Tensor], loads: Tensor, rate: float) -> None:
    """`bias += rate * sign(mean_load - load)`, in place.

    Args:
        biases: one (E,) float32 buffer a mixture block.
        loads: (number of mixture blocks, E) tokens routed to each expert in the whole global batch.
        rate: step size; 0 leaves the biases alone.
    """
    assert len(biases) == len(loads), f"{len(biases)} biases for {len(loads)} rows of loads"
    if rate == 0 or not len(biases):
        return
    wide = loads.double()
    directions = torch.sign(wide.mean(dim=1, keepdim=True) - wide)
    for bias, direction in zip(biases, directions, strict=True):
        bias.add_(direction.to(bias.dtype), alpha=rate)


@dataclass(frozen=True)
class LoadStats:
    """How evenly experts were used in one step; one entry a mixture block."""

    max_over_mean: list[float]
    """Largest expert's share over the mean share; 1 is perfect, E means one expert does everything."""
    variation: list[float]
    """Coefficient of variation of the shares: standard deviation over mean."""
    shares: list[list[float]]
    """Each expert's share of the block's routing decisions, summing to 1."""


def load_stats(loads: Tensor) -> LoadStats:
    """Statistics of loads (number of mixture blocks, E); empty lists for a model without mixture blocks."""
    if loads.numel() == 0:
        return LoadStats([], [], [])
    wide = loads.double().cpu()
    mean = wide.mean(dim=1).clamp_min(1e-12)
    shares = wide / wide.sum(dim=1, keepdim=True).clamp_min(1)
    return LoadStats(
        max_over_mean=(wide.amax(dim=1) / mean).tolist(),
        variation=(wide.std(dim=1, correction=0) / mean).tolist(),
        shares=shares.tolist(),
    )
