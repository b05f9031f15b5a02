"""What a forward pass knows beside the activations, in one object that is handed to every mixer.

A pass may be over a slice of longer rows. Then a boundary gives Mamba-2 blocks what the slices before left, and a
context gives attention blocks their keys and values. Either may compute, remember, or speak to other processes; the
blocks ask them in the same way in whole passes, passes in pieces and recomputation.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Edge(NamedTuple):
    """What a Mamba-2 block hands on from one slice of a row to the next."""

    conv: Tensor
    """(B, C, W-1) last inputs of the convolution, 0 where of an earlier document than the last token."""
    ssm: Tensor
    """(B, H, P, N) state of the scan, float32."""


class OwnSlice(Protocol):
    """A slice as a boundary may ask for it before its start state is known; differentiable."""

    def tail(self) -> Tensor:
        """(B, C, W-1): `Edge.conv` at its end; needs at least W-1 tokens."""
        ...

    def summary(self, conv: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the slice does to the scan's state: (state (B, H, P, N), decay (B, H)), so that a start state `ssm`
        ends as decay * ssm + state. `conv` (B, C, W-1): the tail of the slice before, None at a row's start."""
        ...


class Boundary(Protocol):
    """What lies before a slice, for Mamba-2 blocks."""

    previous_ids: Tensor | None
    """(B,) document id of the token before each row's slice, so that a document may go on; None: rows begin here, or
    the pass has no document ids."""

    def enter(self, block: int, own: OwnSlice) -> Edge | None:
        """What the slice before left in this block; None at the rows' start."""
        ...

    def leave(self, block: int, end: Edge) -> None:
        """What this slice leaves."""
        ...


class Keys(NamedTuple):
    """Keys and values of an attention block."""

    keys: Tensor
    """(B, S, Hkv, Dh)."""
    values: Tensor
    """(B, S, Hkv, Dh)."""
    document_ids: Tensor | None
    """(B, S)."""


class Context(Protocol):
    """What lies before a slice, for attention blocks."""

    def gather(self, block: int, own: Keys) -> Keys:
        """The keys and values of all positions up to the slice's end, `own` the last of them."""
        ...


@dataclass
class Pass:
    """One pass over a batch, as one block sees it."""

    document_ids: Tensor | None = None
    """(B, T) int; a change from one position to the next starts a document. None: each row is one document."""
    valid: Tensor | None = None
    """(B, T) bool, False at padding, which is neither routed nor counted. None: no padding."""
    routing: Tensor | None = None
    """(B, T, K) experts that this block has to use, whatever at padding. None: the router chooses."""
    keep_expert_ids: bool = False
    """Whether the statistics of a pass in pieces are to hold the chosen experts."""
    boundary: Boundary | None = None
    """None: nothing lies before the rows."""
    context: Context | None = None
    """None: keys and values are those of the rows themselves."""
    block: int = 0
    """Number of the block, which boundary and context are told."""

    def at(self, block: int, routing: Tensor | None) -> Pass:
        """The same pass as this block sees it, with the experts given for it (B, T, K)."""
        other = copy(self)
        other.block, other.routing = block, routing
        other.places = self.places  # found once for all blocks
        return other

    def part(self, rows: slice, piece: slice) -> Pass:
        """Some positions of some rows, by themselves."""
        ids, valid, routing = (
            m if m is None else m[rows, piece] for m in (self.document_ids, self.valid, self.routing)
        )
        return Pass(ids, valid, routing, self.keep_expert_ids)

    @property
    def continues(self) -> Tensor | None:
        """(B,) whether the first token belongs to the document of the token before the slice; None: always."""
        if self.document_ids is None or self.boundary is None or self.boundary.previous_ids is None:
            return None
        return self.document_ids[:, 0] == self.boundary.previous_ids

    def enter(self, own: OwnSlice) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Conv and scan state (see Edge) that the first document of each row goes on from; None: the start."""
        edge = None if self.boundary is None else self.boundary.enter(self.block, own)
        if edge is None:
            return None, None
        return where_rows(self.continues, edge.conv), where_rows(self.continues, edge.ssm)

    @cached_property
    def places(self) -> Tensor | None:
        """(S,) int64: where the valid tokens lie among the B * T positions. None: all are valid."""
        return None if self.valid is None else self.valid.flatten().nonzero().flatten()

    def pick(self, x: Tensor) -> Tensor:
        """x (B, T, ...) -> (S, ...), the valid tokens."""
        flat = x.flatten(0, 1)
        return flat if self.places is None else flat.index_select(0, self.places)

    def spread(self, x: Tensor, shape: tuple[int, int], padding: int = 0) -> Tensor:
        """x (S, ...) of the valid tokens -> (B, T, ...) of `shape` (B, T), with `padding` in the other places."""
        if self.places is not None:
            x = x.new_full((shape[0] * shape[1], *x.shape[1:]), padding).index_copy(0, self.places, x)
        return x.view(*shape, *x.shape[1:])

    def apply(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """A function of each token alone on the valid tokens of x (B, T, D) -> (B, T, ...), 0 at padding."""
        return function(x) if self.places is None else self.spread(function(self.pick(x)), (x.shape[0], x.shape[1]))


def where_rows(rows: Tensor | None, state: Tensor) -> Tensor:
    """`state` (R, ...) of those rows (R,), 0 of the others; None: of all."""
    return state if rows is None else torch.where(rows.view(-1, *[1] * (state.dim() - 1)), state, 0.0)


WHOLE = Pass()
"""A batch of rows of one document each, without padding."""
