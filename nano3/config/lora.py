"""Settings of low-rank adapters (`lora.*`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nano3.config.checks import check


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (LoRA, arXiv 2106.09685): W + alpha/rank * B A, of which only A and B train."""

    rank: int = 0
    """Rank of each adapter; 0: no adapters, all weights train."""
    alpha: float = 32.0
    """Adapters count alpha/rank times. At one alpha the best learning rate hardly depends on the rank."""
    dropout: float = 0.0
    """Share of an adapter's inputs that are dropped in training."""
    targets: list[str] = field(default_factory=list)
    """Projections that get an adapter: patterns such as `q_proj` or `*.experts.*`, for nano3's names, the published
    ones, or the ends of either. Empty: all of attention, Mamba-2, experts and MLPs."""
    base_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the weights that stay as they are. auto: as they are stored, and float32 for new ones."""

    def __post_init__(self) -> None:
        check("lora", self, ">=", 0, "rank", "dropout")
        check("lora", self, ">", 0, "alpha")
        check("lora", self, "<", 1, "dropout")
        if self.targets and not self.rank:
            raise ValueError("lora.targets names projections, but lora.rank is 0: set the rank, such as lora.rank=16")
