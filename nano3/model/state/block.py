"""What one block keeps of the tokens before: of sequences that advance together, or of those of a pool."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nano3.kernels.scaled import E4M3
from nano3.model.state.plan import Plan, Round
from nano3.model.state.step_plan import StepPlan


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


@dataclass
class MambaSlots:
    """Slots of one Mamba-2 block, and the plan of the pass that advances them."""

    conv: Tensor
    """(slots, conv_dim, d_conv - 1)."""
    ssm: Tensor
    """(slots, H, P, N), float32."""
    plan: Plan | StepPlan | None = None

    def view(self, slots: slice) -> MambaState:
        """Neighbouring slots, to be advanced in place."""
        return MambaState(self.conv[slots], self.ssm[slots])

    def take(self, slots: Tensor) -> MambaState:
        """Copies of some slots."""
        return MambaState(self.conv[slots], self.ssm[slots])

    def put(self, slots: Tensor, state: MambaState) -> None:
        """Write copies back."""
        self.conv[slots] = state.conv
        self.ssm[slots] = state.ssm

    def save(self, part: Round) -> None:
        """Keep the states that the plan wants kept after one round."""
        if part.saves is not None:
            source, target = part.saves
            self.put(target, self.take(source))


@dataclass
class AttentionPages:
    """Pages of one attention block, and the plan of the pass that fills them."""

    keys: Tensor
    """(pages, page_size, n_kv_heads, head_dim)."""
    values: Tensor
    plan: Plan | StepPlan | None = None

    def write(self, keys: Tensor, values: Tensor) -> None:
        """Store (n_tokens, n_kv_heads, head_dim) at the places of the plan; in e4m3 they are multiples of their scale,
        none beyond 448."""
        assert self.plan is not None
        for pages, new in ((self.keys, keys), (self.values, values)):
            places, stored = pages.view(-1, *new.shape[1:]), self.plan.written(new).to(pages.dtype)
            if pages.dtype == E4M3:  # PyTorch copies the numbers of few types by index
                places, stored = places.view(torch.uint8), stored.view(torch.uint8)
            places.index_copy_(0, self.plan.kv_positions, stored)


BlockState = MambaState | AttentionState | MambaSlots | AttentionPages | None
