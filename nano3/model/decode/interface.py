"""What a decoding step takes and gives, and the model as it looks at it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from nano3.model.layers import Linear, RMSNorm


class DecodingModel(Protocol):
    """A language model as this module looks at it (nano3.model.lm.LM)."""

    compute_dtype: torch.dtype
    embeddings: nn.Embedding
    blocks: nn.ModuleList
    norm_f: RMSNorm
    lm_head: Linear

    def modules(self) -> Iterator[nn.Module]:
        """All modules, itself among them."""
        ...


class Stepped(NamedTuple):
    """Result of a step of n sequences."""

    hidden: Tensor
    """(n, D) float32 after the final norm."""
    logits: Tensor | None
    """(n, V) float32."""
    expert_ids: Tensor | None = None
    """(mixture blocks, n, K) int16: the experts that each token used, where they were asked for."""


class Ahead(NamedTuple):
    """One token of one sequence."""

    token: int
    slot: int
    pages: list[int]
    """Enough for `length`."""
    length: int
    """Tokens of the sequence with this one."""
