"""The passes in pieces of the mixers that mix the tokens of a sequence; see nano3.model.chunked."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from nano3.kernels import attention
from nano3.model.attention import Attention
from nano3.model.mamba2 import Mamba2
from nano3.model.pieces import EachAlone, Gradients, Rows, leaf


class MambaPieces(EachAlone):
    """Keeps the states (conv, ssm) that each piece but the first begins with."""

    def forward(self, rows: Rows, y: Tensor) -> list[Tensor]:
        kept, state = [], (None, None)
        for piece in rows.pieces:
            if piece.start:
                # Clones: a state may be a view of all that it was made from.
                state = [_where(rows.continues(piece), m).clone() for m in state]
                kept += state
            y[:, piece], *state = self._advance(rows.x[:, piece], rows.ids(piece), *state)
        return kept

    def backward(self, rows: Rows, kept: Sequence[Tensor], dy: Tensor, dx: Tensor, gradients: Gradients) -> None:
        given: list[Tensor] = []  # gradients of the state after the piece; of the last piece's there are none
        for i, piece in reversed(list(enumerate(rows.pieces))):
            x, state = leaf(rows.x[:, piece]), [leaf(m) for m in kept[2 * i - 2 : 2 * i]] if i else []
            with torch.enable_grad():
                outputs = self._advance(x, rows.ids(piece), *(state or (None, None)))
            above = [dy[:, piece], *given]
            dx[:, piece], *found = gradients.of(outputs[: len(above)], above, [x, *state])
            pairs = zip(found, state, strict=True)
            given = [_where(rows.continues(piece), torch.zeros_like(m) if d is None else d) for d, m in pairs]

    def _advance(self, x: Tensor, ids: Tensor | None, conv: Tensor | None, ssm: Tensor | None) -> tuple[Tensor, ...]:
        y, conv, ssm = cast(Mamba2, self.block.mixer).advance(self.block.norm(x), ids, conv, ssm)
        return x + y, conv, ssm


def _where(rows: Tensor | None, state: Any) -> Tensor:
    """`state` (R, ...) of those rows (R,), 0 of the others; None: of all."""
    return state if rows is None else torch.where(rows.view(-1, *[1] * (state.dim() - 1)), state, 0.0)


class Span(NamedTuple):
    """Queries of a piece and the keys that they see, by position in the row; the last query and key are the same."""

    queries: slice
    keys: slice

    def ids(self, rows: Rows) -> Tensor | None:
        """(1, queries) where several documents may begin among the keys, which are those of the queries then."""
        return rows.ids(self.queries) if self.queries == self.keys else None


class AttentionPieces(EachAlone):
    """The queries of each piece against the keys and values of its documents, of all pieces so far."""

    def forward(self, rows: Rows, y: Tensor) -> list[Tensor]:
        if len(rows.pieces) == 1:
            return super().forward(rows, y)
        k, v = self._keys_and_values(rows, empty=True)
        for piece, spans in zip(rows.pieces, _spans(rows), strict=True):
            x = rows.x[:, piece]
            q, k[:, piece], v[:, piece] = self._project(x)
            views = [self._view(q, k, v, span, piece) for span in spans]
            y[:, piece] = self._attend(x, views, [span.ids(rows) for span in spans])
        return []

    def backward(self, rows: Rows, kept: Sequence[Tensor], dy: Tensor, dx: Tensor, gradients: Gradients) -> None:
        if len(rows.pieces) == 1:
            return super().backward(rows, kept, dy, dx, gradients)
        k, v = self._keys_and_values(rows)
        # float32 at least: each piece adds to the gradients of all keys that its queries see.
        wide = torch.promote_types(k.dtype, torch.float32)
        dk, dv = torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
        for piece, spans in reversed(list(zip(rows.pieces, _spans(rows), strict=True))):
            x = leaf(rows.x[:, piece])
            with torch.enable_grad():
                q, *own = self._project(x)
                views = [tuple(map(leaf, self._view(q, k, v, span, piece))) for span in spans]
                y = self._attend(x, views, [span.ids(rows) for span in spans])
            direct, *found = gradients.of([y], [dy[:, piece]], [x, *(m for view in views for m in view)])
            dq = []
            for span, part in zip(spans, range(0, len(found), 3), strict=True):
                dq.append(found[part])
                dk[:, span.keys] += found[part + 1]
                dv[:, span.keys] += found[part + 2]
            # No earlier query sees the keys of this piece: their gradients are complete.
            above = [torch.cat(dq, dim=1), *(m[:, piece].to(k.dtype) for m in (dk, dv))]
            dx[:, piece] = direct + gradients.of([q, *own], above, [x])[0]
            del found, views, y
        return None

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mixer, normed = cast(Attention, self.block.mixer), self.block.norm(x)
        return mixer.queries(normed), mixer.keys(normed), mixer.values(normed)

    def _attend(self, x: Tensor, views: Sequence[Sequence[Tensor]], ids: list[Tensor | None]) -> Tensor:
        """Output of the block for a piece x (1, L, D) whose spans have these queries, keys and values."""
        parts = [attention(*view, document_ids=own) for view, own in zip(views, ids, strict=True)]
        y = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        return x + cast(Attention, self.block.mixer).o_proj(y.flatten(-2))

    def _view(self, q: Tensor, k: Tensor, v: Tensor, span: Span, piece: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of a span, of q (1, L, Hq, Dh) of the piece, with keys and values of k, v (1, T, Hkv, Dh)."""
        own = slice(span.queries.start - piece.start, span.queries.stop - piece.start)
        return q[:, own], k[:, span.keys], v[:, span.keys]

    def _keys_and_values(self, rows: Rows, empty: bool = False) -> tuple[Tensor, Tensor]:
        """(1, T, Hkv, Dh) of the row; with `empty` only the room for them."""
        cfg = cast(Attention, self.block.mixer).cfg
        k, v = (rows.x.new_empty(*rows.x.shape[:2], cfg.n_kv_heads, cfg.head_dim) for _ in range(2))
        for piece in [] if empty else rows.pieces:
            _, k[:, piece], v[:, piece] = self._project(rows.x[:, piece])
        return k, v


def _spans(rows: Rows) -> list[list[Span]]:
    """Of each piece: the end of a document that began before it, then all documents that begin inside it."""
    starts = [0]
    if rows.around.document_ids is not None:
        ids = rows.around.document_ids[0]
        starts += (torch.nonzero(ids[1:] != ids[:-1]).flatten() + 1).tolist()
    found = []
    for piece in rows.pieces:
        begin = starts[bisect_right(starts, piece.start) - 1]
        inside = bisect_right(starts, piece.start)
        end = starts[inside] if inside < len(starts) and starts[inside] < piece.stop else piece.stop
        if begin == piece.start:
            end = piece.stop
        spans = [Span(slice(piece.start, end), slice(begin, end))]
        found.append([*spans, Span(slice(end, piece.stop), slice(end, piece.stop))] if end < piece.stop else spans)
    return found
