"""In which type weights travel to where they are computed with, and gradients back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.fsdp._fully_shard import _fsdp_common

from nano3.config.errors import UserError
from nano3.config.sections.parallel import ParallelConfig
from nano3.model.layers import Linear
from nano3.model.moe import Experts

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Precision:
    """Types of what travels of the weights of `narrow_parameters`; all others travel in float32."""

    gather: torch.dtype = torch.float32
    """Of gathered weights, and so of a process's own gradients."""
    reduce: torch.dtype = torch.float32
    """Of the sum of all processes' gradients."""

    @property
    def is_mixed(self) -> bool:
        """Whether anything is not float32."""
        return self != FLOAT32


FLOAT32 = Precision()
"""All of them in float32."""


def precision_of(cfg: ParallelConfig, compute: torch.dtype, device: torch.device) -> Precision:
    """The types that `cfg` asks for in a run that computes in `compute` on `device`.

    CPUs make float32 gradients out of bfloat16 products, so that narrow weights, whose gradients are as narrow, would
    round where nothing else does.

    Raises:
        UserError: weights would be rounded that are computed with in float32.
    """
    if cfg.gather_dtype == "bfloat16" and compute != torch.bfloat16:
        name = str(compute).removeprefix("torch.")
        raise UserError(
            f"parallel.gather_dtype is bfloat16, and this run computes in {name}: weights would be rounded on the way; "
            "--set train.dtype=bfloat16, or --set parallel.gather_dtype=auto"
        )
    auto = compute if device.type == "cuda" and shards_over_two_sets() else torch.float32
    return Precision(TYPES.get(cfg.gather_dtype, auto), TYPES[cfg.reduce_dtype])


def shards_over_two_sets() -> bool:
    """Whether this PyTorch shards the parameters of a block over two sets of processes, as 2.13 and newer do."""
    return hasattr(_fsdp_common, "ShardPlacementResult")


def narrow_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Weights that are cast to the compute type for every product: those of projections and experts.

    Not those of embeddings: the gradients of a common token are many small ones, whose sum bfloat16 would lose. Nor
    convolutions and norms, which compute in float32, nor the router and the steps of the scan, which have to.
    """
    narrow: set[nn.Parameter] = set()
    for module in model.modules():
        if isinstance(module, Linear):
            narrow.add(module.weight)
        elif isinstance(module, Experts):
            narrow |= {module.up_proj, module.down_proj}
    return narrow
