"""A pass in pieces through an attention block; see nano3.model.chunked.block."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nano3.kernels import attention
from nano3.kernels.host_copies import known
from nano3.model.chunked.pieces import EachAlone, Gradients, PreNorm, Rows, leaf
from nano3.model.forward_pass import Keys, Pass


class Span(NamedTuple):
    """Queries of a piece, by position in the row, and the keys that they see, by position among all keys; the last
    query and the last key are of the same token."""

    queries: slice
    keys: slice
    several: bool
    """Whether several documents may begin among the keys."""


class AttentionPieces(EachAlone):
    """The queries of each piece against the keys and values of its documents, of all pieces so far.

    A row's keys and values are computed again in the backward pass; those that a context gives are kept.
    """

    def __init__(self, block: PreNorm, around: Pass) -> None:
        super().__init__(block, around)
        self._found: list[list[Tensor]] = []

    def enter(self, x: Tensor, most_tokens: int) -> list[Tensor]:
        context = self.around.context
        if context is None:
            return []
        parts = [checkpoint(self._own, part, use_reentrant=False) for part in x.split(most_tokens, dim=1)]
        keys, values = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))  # pyright: ignore
        gathered = context.gather(self.around.block, Keys(keys, values, self.around.document_ids))
        return [m for m in gathered if m is not None]

    def forward(self, rows: Rows, y: Tensor) -> list[Tensor]:
        if len(rows.pieces) == 1 and not self.given:
            return super().forward(rows, y)
        keys = self._keys(rows, empty=True)
        for piece, spans in zip(rows.pieces, _spans(rows, keys), strict=True):
            x = rows.x[:, piece]
            q, *own = self._project(x)
            if own:
                keys.keys[:, piece], keys.values[:, piece] = own
            y[:, piece] = self._attend(x, [_view(q, keys, span, piece) for span in spans], keys, spans)
        return []

    def backward(self, rows: Rows, kept: Sequence[Tensor], dy: Tensor, dx: Tensor, gradients: Gradients) -> None:
        if len(rows.pieces) == 1 and not self.given:
            return super().backward(rows, kept, dy, dx, gradients)
        keys = self._keys(rows)
        # float32 at least: each piece adds to the gradients of all keys that its queries see.
        dtype = keys.keys.dtype
        wide = torch.promote_types(dtype, torch.float32)
        dk, dv = torch.zeros_like(keys.keys, dtype=wide), torch.zeros_like(keys.values, dtype=wide)
        for piece, spans in reversed(list(zip(rows.pieces, _spans(rows, keys), strict=True))):
            x = leaf(rows.x[:, piece])
            with torch.enable_grad():
                q, *own = self._project(x)
                views = [tuple(map(leaf, _view(q, keys, span, piece))) for span in spans]
                y = self._attend(x, views, keys, spans)
            direct, *found = gradients.of([y], [dy[:, piece]], [x, *(m for view in views for m in view)])
            dq = []
            for span, part in zip(spans, range(0, len(found), 3), strict=True):
                dq.append(found[part])
                dk[:, span.keys] += found[part + 1]
                dv[:, span.keys] += found[part + 2]
            # No earlier query sees the row's own keys of this piece: their gradients are complete.
            above = [torch.cat(dq, dim=1), *(m[:, piece].to(dtype) for m in (dk, dv) if not self.given)]
            dx[:, piece] = direct + gradients.of([q, *own], above, [x])[0]
            del found, views, y
        self._found.append([dk.to(dtype), dv.to(dtype)] if self.given else [])
        return None

    def dgiven(self) -> list[Tensor | None]:
        found: list[Tensor | None] = [torch.cat(found) for found in zip(*self._found, strict=True)]
        return [*found, None][: len(self.given)]  # the third are document ids

    def _project(self, x: Tensor) -> list[Tensor]:
        """Queries, and keys and values unless they are given."""
        mixer, normed = self.block.mixer, self.block.norm(x)
        return (
            [mixer.queries(normed)] if self.given else [mixer.queries(normed), mixer.keys(normed), mixer.values(normed)]
        )

    def _own(self, x: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.block.norm(x)
        return self.block.mixer.keys(normed), self.block.mixer.values(normed)

    def _attend(self, x: Tensor, views: Sequence[Sequence[Tensor]], keys: Keys, spans: Sequence[Span]) -> Tensor:
        """Output of the block for a piece x (R, L, D) whose spans have these queries, keys and values."""
        ids = [keys.document_ids[:, s.keys] if s.several and keys.document_ids is not None else None for s in spans]
        parts = [attention(*view, document_ids=own) for view, own in zip(views, ids, strict=True)]
        y = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        return x + self.block.mixer.o_proj(y.flatten(-2))

    def _keys(self, rows: Rows, empty: bool = False) -> Keys:
        """(R, S, Hkv, Dh) that the rows see; of their own with `empty` only the room for them."""
        if self.given:
            keys, values, *ids = (m[rows.among] for m in self.given)
            return Keys(keys, values, ids[0] if ids else None)
        like, T = self.block.mixer.keys(rows.x[:, :0]), rows.x.shape[1]
        room = like.shape[0], T, *like.shape[2:]
        keys = Keys(like.new_empty(room), like.new_empty(room), rows.around.document_ids)
        for piece in [] if empty else rows.pieces:
            keys.keys[:, piece], keys.values[:, piece] = self._own(rows.x[:, piece])
        return keys


def _view(q: Tensor, keys: Keys, span: Span, piece: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of a span, of q (R, L, Hq, Dh) of the piece, with its keys and values."""
    own = slice(span.queries.start - piece.start, span.queries.stop - piece.start)
    return q[:, own], keys.keys[:, span.keys], keys.values[:, span.keys]


def _spans(rows: Rows, keys: Keys) -> list[list[Span]]:
    """Of each piece: the end of a document that began before it, then all documents that begin inside it. Of several
    rows, whose documents differ: all together."""
    T, S = rows.x.shape[1], keys.keys.shape[1]
    if len(rows.pieces) == 1:
        return [[Span(slice(0, T), slice(0, S), True)]]
    starts, before = [0], S - T
    if keys.document_ids is not None:
        ids, host = keys.document_ids[0], known(keys.document_ids[0])
        ids = ids if host is None else host
        starts += (torch.nonzero(ids[1:] != ids[:-1]).flatten() + 1).tolist()
    return [_spans_of(piece, starts, before) for piece in rows.pieces]


def _spans_of(piece: slice, starts: list[int], before: int) -> list[Span]:
    """Of one piece of one row; its documents begin at `starts` among all keys, of which `before` lie before the row."""
    first, last = piece.start + before, piece.stop + before
    inside = bisect_right(starts, first)
    begin = starts[inside - 1]
    end = starts[inside] if inside < len(starts) and starts[inside] < last else last
    if begin == first:
        return [Span(piece, slice(first, last), True)]
    spans = [Span(slice(piece.start, end - before), slice(begin, end), False)]
    return [*spans, Span(slice(end - before, piece.stop), slice(end, last), True)] if end < last else spans
