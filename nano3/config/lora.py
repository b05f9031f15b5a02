"""Settings of low-rank adapters (`lora.*`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

from nano3.config.checks import check


class TrainPasses(Protocol):
    """What a section `train` says of passes through a block."""

    @property
    def checkpoint_activations(self) -> str: ...
    @property
    def sequence_chunk(self) -> int: ...


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

    def check_passes(self, train: TrainPasses, context: int) -> None:
        """Refuse dropout where a block is computed again in pieces, which would draw other masks.

        Raises:
            ValueError: which settings, and what to do.
        """
        if not (self.rank and self.dropout):
            return
        way = f"lora.dropout is {self.dropout:g} with"
        what = "the backward pass would drop other inputs than the forward pass; set lora.dropout=0"
        if train.sequence_chunk:
            raise ValueError(f"{way} train.sequence_chunk = {train.sequence_chunk}: {what} or train.sequence_chunk=0")
        if context > 1 and train.checkpoint_activations == "block":
            both = f'parallel.context = {context} and train.checkpoint_activations = "block"'
            raise ValueError(f"{way} {both}: {what} or train.checkpoint_activations=none")
