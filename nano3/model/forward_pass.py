"""What a forward pass knows beside the activations, in one object that is handed to every mixer.

A pass may be over a slice of longer rows. Then a boundary gives Mamba-2 blocks what the slices before left, and a
context gives attention blocks their keys and values. Either may compute, remember, or speak to other processes; the
blocks ask them in the same way in whole passes, passes in pieces and recomputation.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from nano3.kernels.host_copies import known, send

Statistic = Literal["loads", "balance_loss", "sequence_balance_loss"]
"""A property of nano3.model.lm.Hidden that is made of the routers' choices and scores."""
STATISTICS: frozenset[Statistic] = frozenset({"loads", "balance_loss", "sequence_balance_loss"})
INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


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


class Slices(Protocol):
    """Everyone who holds slices of the same rows: a process group. Members call each method alike."""

    @property
    def each(self) -> int:
        """Slices of a row that each member holds: (B, T) of B / each rows, the first slices of all rows first."""
        ...

    def sum(self, values: Tensor) -> Tensor:
        """`values`, integers of one shape on all members, added up over them, in place or not."""
        ...

    def sum_rows(self, values: Tensor) -> Tensor:
        """values (..., B, E), integers, of the own slices -> the same shape: in each place the sum over all slices of
        its row."""
        ...


class Places:
    """Where the tokens that are no padding lie in rows (B, T); found once, for all blocks and all pieces of them."""

    def __init__(self, flat: Tensor, shape: tuple[int, int]) -> None:
        """`flat` (S,) int64, ascending, among the B * T positions of `shape`."""
        self.flat, self.shape = flat, shape

    @classmethod
    def of(cls, valid: Tensor) -> Places:
        """From a mask (B, T) bool, False at padding. The CPU waits for a GPU only where it does not know the mask
        (nano3.kernels.host_copies)."""
        shape, host = (valid.shape[0], valid.shape[1]), known(valid)
        if host is None:
            return cls(valid.flatten().nonzero().flatten(), shape)
        seen = host.flatten().nonzero().flatten()
        found = cls(seen if valid.device.type == "cpu" else send(seen, valid.device), shape)
        found._on_host = seen
        return found

    def part(self, rows: slice, piece: slice) -> Places:
        """Of whole rows, or of a piece of one row, among their own positions."""
        (first, last, _), (start, stop, _) = rows.indices(self.shape[0]), piece.indices(self.shape[1])
        assert last - first <= 1 or stop - start == self.shape[1], "pieces of several rows do not lie together"
        begin, end = first * self.shape[1] + start, (last - 1) * self.shape[1] + stop
        low, high = torch.searchsorted(self._on_host, torch.tensor([begin, max(begin, end)], device="cpu")).tolist()
        part = Places(self.flat[low:high] - begin, (last - first, stop - start))
        part._on_host = self._on_host[low:high] - begin
        return part

    @cached_property
    def _on_host(self) -> Tensor:
        """Only a number that the CPU knows can cut a tensor."""
        return self.flat.cpu()


@dataclass
class Pass:
    """One pass over a batch, as one block sees it."""

    document_ids: Tensor | None = None
    """(B, T) int; a change from one position to the next starts a document. None: each row is one document."""
    places: Places | None = None
    """Of the tokens that are no padding; that is neither routed nor counted. None: no padding."""
    routing: Tensor | None = None
    """(B, T, K) experts that this block has to use, whatever at padding. None: the router chooses."""
    keep_expert_ids: bool = False
    """Whether the statistics of a pass in pieces are to hold the chosen experts."""
    boundary: Boundary | None = None
    """None: nothing lies before the rows."""
    context: Context | None = None
    """None: keys and values are those of the rows themselves."""
    statistics: frozenset[Statistic] = STATISTICS
    """Those that are going to be read; of the others a pass in pieces keeps nothing."""
    block: int = 0
    """Number of the block, which boundary and context are told."""
    joint: Pass | None = None
    """Of those who divide the heads of mixers: the pass over the tokens of all of them together, of which these are a
    part. None: heads are not divided."""

    def at(self, block: int, routing: Tensor | None) -> Pass:
        """The same pass as this block sees it, with the experts given for it (B, T, K)."""
        other = copy(self)
        other.block, other.routing = block, routing
        other.joint = None if self.joint is None else self.joint.at(block, None)
        return other

    def part(self, rows: slice, piece: slice) -> Pass:
        """Whole rows, or a piece of one row, by themselves."""
        ids, routing = (m if m is None else m[rows, piece] for m in (self.document_ids, self.routing))
        places = None if self.places is None else self.places.part(rows, piece)
        return Pass(ids, places, routing, self.keep_expert_ids, statistics=self.statistics)

    def check_whole(self) -> None:
        """What a mixer with all of its heads asks, which would take a part of each row's tokens for whole rows.

        Raises:
            ValueError: the pass is one of divided heads.
        """
        if self.joint is not None:
            raise ValueError(
                "the pass is over a part of the tokens of those who divide heads, and this model's are not divided: "
                "call nano3.parallel.tensor.divide_heads"
            )

    @property
    def asks(self) -> bool:
        """Whether blocks ask others for what lies before the rows."""
        return self.boundary is not None or self.context is not None

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

    def pick(self, x: Tensor) -> Tensor:
        """x (B, T, ...) -> (S, ...), the valid tokens."""
        flat = x.flatten(0, 1)
        return flat if self.places is None else flat.index_select(0, self.places.flat)

    def spread(self, x: Tensor, shape: tuple[int, int], padding: int = 0) -> Tensor:
        """x (S, ...) of the valid tokens -> (B, T, ...) of `shape` (B, T), with `padding` in the other places."""
        if self.places is not None:
            x = x.new_full((shape[0] * shape[1], *x.shape[1:]), padding).index_copy(0, self.places.flat, x)
        return x.view(*shape, *x.shape[1:])


def where_rows(rows: Tensor | None, state: Tensor) -> Tensor:
    """`state` (R, ...) of those rows (R,), 0 of the others; None: of all."""
    return state if rows is None else torch.where(rows.view(-1, *[1] * (state.dim() - 1)), state, 0.0)


WHOLE = Pass()
"""A batch of rows of one document each, without padding."""


def check_routing(routing: Tensor, valid: Tensor | None, n_experts: int) -> None:
    """Refuse experts for router replay that no router can have chosen. One look for all blocks: on a GPU the CPU waits
    once a pass.

    Args:
        routing: (number of MoE blocks, B, T, K).
        valid: (B, T) bool, False where they are not read; None: all are.
        n_experts: E.

    Raises:
        ValueError: a token that is no padding has an id outside 0 to E - 1, or one twice; with the first such place.
    """
    if routing.dtype not in INTEGERS:
        kind = str(routing.dtype).removeprefix("torch.")
        raise ValueError(f"routing is {kind}; expert ids are integers")
    if routing.is_meta or torch.compiler.is_compiling():
        return
    valid_known = None if valid is None else known(valid)
    if (host := known(routing)) is not None and (valid is None or valid_known is not None):
        routing, valid = host, valid_known
    ids = routing.long().sort(-1).values
    wrong = (ids[..., 0] < 0) | (ids[..., -1] >= n_experts) | (ids[..., 1:] == ids[..., :-1]).any(-1)
    wrong = wrong if valid is None else wrong & valid
    if not wrong.any():
        return
    block, row, token = wrong.nonzero()[0].tolist()
    given = routing[block, row, token].tolist()
    raise ValueError(
        f"routing: MoE block {block}, row {row}, token {token} has the experts {given}; "
        f"a token that is no padding has different ones from 0 to {n_experts - 1}"
    )
