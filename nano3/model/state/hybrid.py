"""The hybrid inference state: what a sequence leaves behind in each block.

A Mamba-2 block keeps the last inputs of its convolution and the scan's state, of constant size; an attention block
keeps the keys and values of every token; the other blocks keep nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from nano3.config.model import ATTENTION, MAMBA, ModelConfig
from nano3.model.state.block import AttentionState, BlockState, MambaSlots, MambaState
from nano3.model.state.plan import Plan


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

    def save(self, plan: Plan) -> None:
        """Keep the states that the plan wants kept of a pool's slots, after a pass that left it to the caller."""
        if plan.has_saves:
            for block in self.blocks:
                if isinstance(block, MambaSlots):
                    for part in plan.rounds:
                        block.save(part)
