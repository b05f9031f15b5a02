"""Context parallelism: each process of a group holds an early and a late slice of every sequence.

Mamba-2 blocks hand on the tail of their convolution and the state of their scan, whose size does not depend on the
length; attention blocks gather keys and values, of which this model has few heads. Both for all slices at once.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from nano3.model.count import ARRIVING
from nano3.model.forward_pass import Edge, Keys, OwnSlice
from nano3.model.lm import PassOptions
from nano3.parallel.collectives import gather
from nano3.parallel.layout import SLICES_EACH
from nano3.parallel.sharing import Sharing, SlicedBatch


class SharedSequences(Sharing):
    """Processes that each hold an early and a late slice of every sequence."""

    each = SLICES_EACH

    def __init__(self, group: Any) -> None:
        super().__init__(group)
        self.arrange(dist.get_rank(group), dist.get_world_size(group))

    def arrange(self, rank: int, size: int) -> None:
        """Say which slices each of `size` processes holds; this one is number `rank`."""
        self.rank, self.size = rank, size
        held = [slices_of(size, i) for i in range(size)]
        self.own = held[rank]
        """Numbers of the slices that this process holds, of `count`."""
        gathered = list(chain(*held))
        self._places = [gathered.index(i) for i in range(self.count)]

    @property
    def count(self) -> int:
        """Slices of a sequence."""
        return self.each * self.size

    def take(self, x: Tensor) -> Tensor:
        """x (B, T, ...) -> the own slices (2B, L, ...)."""
        if x.shape[1] % self.count:
            raise ValueError(f"a sequence of {x.shape[1]} tokens does not divide into {self.count} slices")
        parts = x.split(x.shape[1] // self.count, dim=1)
        return torch.cat([parts[i] for i in self.own])

    def join(self, x: Tensor) -> Tensor:
        return self.gather(x).transpose(0, 1).flatten(1, 2)

    def around(self, batch: SlicedBatch) -> PassOptions:
        neighbours = Neighbours(self, batch.whole_ids)
        return {"boundary": neighbours, "context": neighbours}

    def gather(self, x: Tensor) -> Tensor:
        """x (2B, ...) of the own slices -> (count, B, ...) of all, in their order; differentiable."""
        return self.in_order(gather(x, self.group))

    def start_states(self, state: Tensor, decay: Tensor) -> Tensor:
        """The states (2B, H, P, N) before the own slices, of what each slice, by itself, ends with (2B, H, P, N) and by
        how much it lets an earlier state decay (2B, H)."""
        return _StartStates.apply(state, decay, self)

    def collect(self, x: Tensor) -> Tensor:
        """The same, not differentiable."""
        return self.in_order(gather(x.detach(), self.group))

    def in_order(self, x: Tensor) -> Tensor:
        """x (processes, 2B, ...) of the slices of each process -> (count, B, ...)."""
        return x.unflatten(1, (self.each, -1)).flatten(0, 1)[self._places]

    def choose(self, x: Tensor) -> Tensor:
        """x (count, B, ...) -> (2B, ...), the own slices."""
        return x[self.own].flatten(0, 1)


class _StartStates(torch.autograd.Function):
    """`SharedSequences.start_states`: s_i+1 = state_i + decay_i * s_i from s_0 = 0, over the slices of all processes.
    Every process of the group has to call, forward and backward.

    Each process keeps the states before its own slices, and has those of all slices for a few rows at a time
    (ARRIVING). Backwards the gradients travel in the same way: with g_i that of s_i, G_i = g_i + decay_i * G_i+1, and
    the gradient of state_i is G_i+1, of decay_i the product of G_i+1 and s_i.
    """

    @staticmethod
    def forward(ctx: Any, state: Tensor, decay: Tensor, shared: SharedSequences) -> Tensor:
        decays = shared.collect(decay)[..., None, None]  # (count, B, H, 1, 1)
        starts = torch.empty_like(state)
        own = starts.unflatten(0, (shared.each, -1))
        for rows in _a_few(decays.shape[1], shared.count * state[0].nbytes):
            states, before = shared.collect(state.unflatten(0, (shared.each, -1))[:, rows].flatten(0, 1)), None
            for i in range(shared.count):
                before = torch.zeros_like(states[0]) if before is None else states[i - 1] + decays[i - 1, rows] * before
                if i in shared.own:
                    own[shared.own.index(i), rows] = before
        ctx.save_for_backward(decays, starts)
        ctx.shared = shared
        return starts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor):
        (decays, starts), shared = ctx.saved_tensors, ctx.shared
        of_state, given = torch.empty_like(gradient), gradient.unflatten(0, (shared.each, -1))
        own = of_state.unflatten(0, (shared.each, -1))
        for rows in _a_few(decays.shape[1], shared.count * gradient[0].nbytes):
            gradients = shared.collect(given[:, rows].flatten(0, 1))
            behind = torch.zeros_like(gradients[0])
            for i in reversed(range(shared.count)):
                if i in shared.own:
                    own[shared.own.index(i), rows] = behind
                behind = gradients[i] + decays[i, rows] * behind
        return of_state, (of_state * starts).sum((-1, -2)), None


def _a_few(rows: int, nbytes: int) -> list[slice]:
    """All of so many rows, of `nbytes` each, in parts of ARRIVING bytes at the most, or of one row."""
    each = max(1, ARRIVING // nbytes)
    return [slice(start, min(rows, start + each)) for start in range(0, rows, each)]


def slices_of(size: int, rank: int) -> list[int]:
    """Numbers of the slices of a sequence that process `rank` of `size` holds: an early and a late one."""
    return [rank, SLICES_EACH * size - 1 - rank]


class Neighbours:
    """Boundary and context (nano3.model.forward_pass) of the slices of one micro-batch.

    What a slice is given always depends on what all processes sent, if only with a gradient of 0: no process leaves out
    a collective of the backward pass.
    """

    def __init__(self, shared: SharedSequences, whole_ids: Tensor) -> None:
        """`whole_ids` (B, T): documents of the whole sequences."""
        self.shared, self.ids = shared, whole_ids
        self.length = whole_ids.shape[1] // shared.count
        # Before the first slice another document ends: nothing goes on.
        ends = [whole_ids[:, i * self.length - 1] if i else whole_ids[:, 0] - 1 for i in shared.own]
        self.previous_ids: Tensor | None = torch.cat(ends)

    def enter(self, block: int, own: OwnSlice) -> Edge:
        """The state before each own slice: states and decays of all slices before it, put together."""
        # That of the first slice is another's; its document begins here, so it is not read.
        conv = self.shared.choose(self.shared.gather(own.tail()).roll(1, 0))
        return Edge(conv, self.shared.start_states(*own.summary(conv)))

    def leave(self, block: int, end: Edge) -> None:
        """The slices after this one know it from `enter`."""

    def gather(self, block: int, own: Keys) -> Keys:
        """Keys and values up to the end of each own slice, in front of those of the early slice others that none of its
        queries sees."""
        both = self.shared.gather(torch.stack([own.keys, own.values], dim=1))  # (count, B, 2, L, Hkv, Dh)
        both = both.movedim(0, 2).flatten(2, 3)  # (B, 2, T, Hkv, Dh)
        longest = (max(self.shared.own) + 1) * self.length
        rows = [self._up_to((i + 1) * self.length, longest, both) for i in self.shared.own]
        keys_values, ids = (torch.cat(parts) for parts in zip(*rows, strict=True))
        return Keys(keys_values[:, 0], keys_values[:, 1], ids)

    def _up_to(self, stop: int, longest: int, both: Tensor) -> tuple[Tensor, Tensor]:
        """Positions up to `stop`, with so many of a document of their own in front that they are `longest`."""
        ahead = self.ids[:, :1] - 1
        ids = torch.cat([ahead.expand(-1, longest - stop), self.ids[:, :stop]], dim=1)
        return torch.cat([both[:, :, stop:longest], both[:, :, :stop]], dim=2), ids
