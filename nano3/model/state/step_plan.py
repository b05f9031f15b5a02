"""One token of each row of a batch of fixed size, all of it in tensors: what a CUDA graph can read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepPlan:
    """Rows of padding have slot -1 and no keys. The first row is none."""

    slots: Tensor
    """(n,) int64 state slot of each row."""
    key_counts: Tensor
    """(n,) int64 tokens of each sequence, the row's own included."""
    page_table: Tensor
    """(n, most pages) int32."""
    page_size: int
    kv_positions: Tensor
    """(n,) int64 where each key and value goes: page * page_size + offset."""
    sources: Tensor
    """(n,) int64 the row whose key and value go there: a row of padding writes again what the first row writes."""

    @classmethod
    def of(cls, slots: Tensor, key_counts: Tensor, page_table: Tensor, page_size: int) -> StepPlan:
        """From the rows' own numbers, without a wait for the device."""
        last = (key_counts - 1).clamp(min=0)
        column = (last // page_size).clamp(max=page_table.shape[1] - 1)  # a model without pages has no columns for them
        pages = page_table.gather(1, column.unsqueeze(1)).squeeze(1).long()
        sources = torch.where(slots < 0, 0, torch.arange(len(slots), device=slots.device))
        positions = (pages * page_size + last % page_size)[sources]
        return cls(slots, key_counts, page_table, page_size, positions, sources)

    def written(self, rows: Tensor) -> Tensor:
        """What of keys or values (n, ...) goes to `kv_positions`."""
        return rows[self.sources]
