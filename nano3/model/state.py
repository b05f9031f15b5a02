"""The hybrid inference state: what a sequence leaves behind in each block.

A Mamba-2 block keeps the last inputs of its convolution and the scan's state, of constant size; an attention block
keeps the keys and values of every token; the other blocks keep nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from nano3.config.model import ATTENTION, MAMBA, ModelConfig

if TYPE_CHECKING:
    from nano3.model.pool import AttentionPages, MambaSlots


@dataclass
class MambaState:
    """State of one Mamba-2 block, updated in place."""

    conv: Tensor
    """(B, conv_dim, d_conv - 1) last inputs of the convolution, in the compute dtype."""
    ssm: Tensor
    """(B, H, P, N) state of the scan, float32."""


@dataclass
class AttentionState:
    """Keys and values of one attention block, in buffers that grow by doubling."""

    keys: Tensor
    """(B, capacity, n_kv_heads, head_dim)."""
    values: Tensor
    """(B, capacity, n_kv_heads, head_dim)."""
    length: int = 0
    """Positions filled."""

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add (B, T, n_kv_heads, head_dim) and return views of all positions so far."""
        end = self.length + keys.shape[1]
        if end > self.keys.shape[1]:
            self._grow(max(end, 2 * self.keys.shape[1]))
        self.keys[:, self.length : end] = keys
        self.values[:, self.length : end] = values
        self.length = end
        return self.keys[:, :end], self.values[:, :end]

    def _grow(self, capacity: int) -> None:
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty(old.shape[0], capacity, *old.shape[2:])
            new[:, : self.length] = old[:, : self.length]
            setattr(self, name, new)


BlockState: TypeAlias = "MambaState | AttentionState | MambaSlots | AttentionPages | None"


@dataclass
class HybridState:
    """States of all blocks for a batch of sequences that advance together."""

    blocks: list[BlockState] = field(default_factory=list)
    """One entry a block: MambaState or MambaSlots, AttentionState or AttentionPages, None for blocks without state."""

    @classmethod
    def empty(
        cls,
        cfg: ModelConfig,
        batch_size: int,
        *,
        capacity: int = 256,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> HybridState:
        """State before the first token; `capacity` is the number of positions attention has room for at first."""

        def block(symbol: str) -> BlockState:
            if symbol == MAMBA:
                conv = torch.zeros(batch_size, cfg.conv_dim, cfg.d_conv - 1, dtype=dtype, device=device)
                shape = (batch_size, cfg.mamba_n_heads, cfg.mamba_head_dim, cfg.d_state)
                wide = torch.promote_types(dtype, torch.float32)
                return MambaState(conv, torch.zeros(shape, dtype=wide, device=device))
            if symbol == ATTENTION:
                shape = (batch_size, capacity, cfg.n_kv_heads, cfg.head_dim)
                keys = torch.empty(shape, dtype=dtype, device=device)
                return AttentionState(keys, torch.empty_like(keys))
            return None

        return cls([block(symbol) for symbol in cfg.pattern])
