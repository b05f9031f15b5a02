"""What a forward pass knows beside the activations, in one object that is handed to every mixer."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor


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

    def at(self, routing: Tensor | None) -> Pass:
        """The same pass, as a block with these given experts (B, T, K) sees it."""
        if routing is None:
            return self
        other = copy(self)
        other.routing = routing
        return other

    def part(self, rows: slice, piece: slice) -> Pass:
        """Some positions of some rows."""
        ids, valid, routing = (
            m if m is None else m[rows, piece] for m in (self.document_ids, self.valid, self.routing)
        )
        return Pass(ids, valid, routing, self.keep_expert_ids)

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


WHOLE = Pass()
"""A batch of rows of one document each, without padding."""
