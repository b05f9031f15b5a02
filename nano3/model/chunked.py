"""A pass through one block in pieces, so that training on long sequences needs little memory.

A piece is a stretch of one row, or several whole short rows. Each mixer hands on what the next piece of the row needs:
a Mamba-2 block the end of its convolution and the state of its scan, an attention block the keys and values of the
whole row; the others nothing. A block keeps its input and the states between pieces. The backward pass goes through
the pieces from the last to the first and computes each again; gradients flow through what is handed on, so they are
those of the whole pass. Beside the block's input there are its output, or in the backward pass two gradients of that
size, and in attention keys, values and their gradients; all else is of one piece.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nano3.kernels import attention
from nano3.model.attention import Attention
from nano3.model.mamba2 import Mamba2
from nano3.model.moe import MoE
from nano3.model.router import RouterStats

if TYPE_CHECKING:
    from nano3.model.block import Block


class Rows(NamedTuple):
    """Rows that go through a block together."""

    x: Tensor
    """(R, T, D) input of the block."""
    document_ids: Tensor | None
    """(R, T)."""
    pieces: list[slice]
    """Positions of each piece, in order; of more than one only where R is 1."""

    def ids(self, piece: slice) -> Tensor | None:
        """(R, piece) document ids."""
        return None if self.document_ids is None else self.document_ids[:, piece]

    def continues(self, piece: slice) -> Tensor | None:
        """(R,) whether the piece's first token belongs to the document of the token before it; None: always."""
        ids = self.document_ids
        return None if ids is None or not piece.start else ids[:, piece.start] == ids[:, piece.start - 1]


def run_in_pieces(
    block: Block, x: Tensor, document_ids: Tensor | None, most_tokens: int
) -> tuple[Tensor, RouterStats | None]:
    """What `block` returns for x (B, T, D), at most `most_tokens` at a time; the backward pass computes it again.

    Args:
        block: norm and mixer.
        x: (B, T, D).
        document_ids: (B, T) or None; documents may go on from one piece to the next.
        most_tokens: tokens of one piece.
    """
    parameters = [p for p in block.parameters() if p.requires_grad]
    y, load, probability = _Pass.apply(block, document_ids, most_tokens, x, *parameters)
    return y, None if load is None else MergedStats(load, probability / x.shape[:2].numel())


class MergedStats(RouterStats):
    """Routing statistics of all pieces together."""

    def __init__(self, load: Tensor, probability: Tensor) -> None:
        """From the load (E,) int64 and the mean over tokens of normalised scores (E,)."""
        self.load, self._probability = load, probability

    @property
    def balance_loss(self) -> Tensor:
        """Scalar: E * sum_e f_e P_e over all tokens, 1 when routing is even."""
        fraction = self.load.to(self._probability.dtype) / self.load.sum()
        return len(self.load) * torch.dot(fraction, self._probability)


class _Pass(torch.autograd.Function):
    """The parameters are arguments so that their gradients are returned, and not added behind a sharding's back."""

    @staticmethod
    def forward(
        ctx: Any, block: Block, document_ids: Tensor | None, most_tokens: int, x: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        run, y, kept = _runner(block), torch.empty_like(x), []
        for rows, out in zip(_rows(x, document_ids, most_tokens), _rows(y, None, most_tokens), strict=True):
            kept.append(run.forward(rows, out.x))
        ctx.save_for_backward(x, document_ids, *(state for states in kept for state in states))
        ctx.block, ctx.most_tokens, ctx.counts = block, most_tokens, [len(states) for states in kept]
        if run.load is not None:
            ctx.mark_non_differentiable(run.load)
        return y, run.load, run.probability

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dload: Tensor | None, dprobability: Tensor | None):
        x, document_ids, *states = ctx.saved_tensors
        run, dx = _runner(ctx.block), torch.empty_like(x)
        run.dprobability = dprobability
        gradients = _Gradients([p for p in ctx.block.parameters() if p.requires_grad])
        parts = (_rows(m, ids, ctx.most_tokens) for m, ids in ((x, document_ids), (dy, None), (dx, None)))
        for count, rows, above, below in zip(ctx.counts, *parts, strict=True):
            run.backward(rows, states[:count], above.x, below.x, gradients)
            states = states[count:]
        return None, None, None, dx, *gradients.sums


class _Gradients:
    """Gradients of a block's parameters, summed over pieces."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters = parameters
        self.sums: list[Tensor | None] = [None] * len(parameters)

    def of(self, outputs: Sequence[Tensor], given: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Any]:
        """Gradients of `inputs` (None: no output depends on it), from those `given` of `outputs`; those of the
        parameters are added to `sums`."""
        found = torch.autograd.grad(outputs, [*inputs, *self.parameters], given, allow_unused=True)
        for i, gradient in enumerate(found[len(inputs) :]):
            before = self.sums[i]
            if gradient is not None and before is None:
                self.sums[i] = gradient if gradient.is_contiguous() else gradient.contiguous()
            elif gradient is not None and before is not None:
                before.add_(gradient)
        return list(found[: len(inputs)])


def _rows(x: Tensor, document_ids: Tensor | None, most_tokens: int) -> Iterator[Rows]:
    """Short rows several at a time; of a long row pieces of equal length, the last may be shorter."""
    T = x.shape[1]
    pieces = [slice(start, min(start + most_tokens, T)) for start in range(0, T, most_tokens)]
    at_once = max(1, most_tokens // T)
    for first in range(0, len(x), at_once):
        ids = None if document_ids is None else document_ids[first : first + at_once]
        yield Rows(x[first : first + at_once], ids, pieces)


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


class _EachAlone:
    """A mixer that acts on each token alone."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.load: Tensor | None = None
        self.probability: Tensor | None = None
        self.dprobability: Tensor | None = None

    def forward(self, rows: Rows, y: Tensor) -> list[Tensor | None]:
        """Fill y (R, T, D); returns what the backward pass needs beside the input. Runs without gradients."""
        for piece in rows.pieces:
            y[:, piece] = self._one(rows.x[:, piece], rows.ids(piece))
        return []

    def backward(self, rows: Rows, kept: list[Any], dy: Tensor, dx: Tensor, gradients: _Gradients) -> None:
        """Fill dx (R, T, D), the gradient of the input, from dy, that of the output."""
        for piece in reversed(rows.pieces):
            x = _leaf(rows.x[:, piece])
            with torch.enable_grad():
                y = self._one(x, rows.ids(piece))
            dx[:, piece] = gradients.of([y], [dy[:, piece]], [x])[0]

    def _one(self, x: Tensor, ids: Tensor | None) -> Tensor:
        return x + self.block.mixer(self.block.norm(x), ids, None)[0]


class _MoE(_EachAlone):
    """Loads are counted in the forward pass alone: the backward pass makes the same choices again."""

    def forward(self, rows: Rows, y: Tensor) -> list[Tensor | None]:
        for piece in rows.pieces:
            y[:, piece], stats = self._routed(rows.x[:, piece])
            load, probability = stats.load, stats.probabilities.sum(0)
            self.load = load if self.load is None else self.load + load
            self.probability = probability if self.probability is None else self.probability + probability
        return []

    def backward(self, rows: Rows, kept: list[Any], dy: Tensor, dx: Tensor, gradients: _Gradients) -> None:
        assert self.dprobability is not None
        for piece in reversed(rows.pieces):
            x = _leaf(rows.x[:, piece])
            with torch.enable_grad():
                y, stats = self._routed(x)
                outputs = [y, stats.probabilities.sum(0)]
            dx[:, piece] = gradients.of(outputs, [dy[:, piece], self.dprobability], [x])[0]

    def _routed(self, x: Tensor) -> tuple[Tensor, RouterStats]:
        y, stats = self.block.mixer(self.block.norm(x), None, None)
        return x + y, stats


class _Mamba(_EachAlone):
    """Keeps the states (conv, ssm) that each piece but the first begins with."""

    def forward(self, rows: Rows, y: Tensor) -> list[Tensor | None]:
        kept, state = [], (None, None)
        for piece in rows.pieces:
            if piece.start:
                # Clones: a state may be a view of all that it was made from.
                state = [_where(rows.continues(piece), m).clone() for m in state]
                kept += state
            y[:, piece], *state = self._advance(rows.x[:, piece], rows.ids(piece), *state)
        return kept

    def backward(self, rows: Rows, kept: list[Any], dy: Tensor, dx: Tensor, gradients: _Gradients) -> None:
        given: list[Tensor] = []  # gradients of the state after the piece; of the last piece's there are none
        for i, piece in reversed(list(enumerate(rows.pieces))):
            x, state = _leaf(rows.x[:, piece]), [_leaf(m) for m in kept[2 * i - 2 : 2 * i]] if i else []
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


class _Attention(_EachAlone):
    """The queries of each piece against the keys and values of its documents, of all pieces so far."""

    def forward(self, rows: Rows, y: Tensor) -> list[Tensor | None]:
        if len(rows.pieces) == 1:
            return super().forward(rows, y)
        k, v = self._keys_and_values(rows, empty=True)
        for piece, spans in zip(rows.pieces, _spans(rows), strict=True):
            x = rows.x[:, piece]
            q, k[:, piece], v[:, piece] = self._project(x)
            views = [self._view(q, k, v, span, piece) for span in spans]
            y[:, piece] = self._attend(x, views, [span.ids(rows) for span in spans])
        return []

    def backward(self, rows: Rows, kept: list[Any], dy: Tensor, dx: Tensor, gradients: _Gradients) -> None:
        if len(rows.pieces) == 1:
            return super().backward(rows, kept, dy, dx, gradients)
        k, v = self._keys_and_values(rows)
        # float32 at least: each piece adds to the gradients of all keys that its queries see.
        wide = torch.promote_types(k.dtype, torch.float32)
        dk, dv = torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
        for piece, spans in reversed(list(zip(rows.pieces, _spans(rows), strict=True))):
            x = _leaf(rows.x[:, piece])
            with torch.enable_grad():
                q, *own = self._project(x)
                views = [tuple(map(_leaf, self._view(q, k, v, span, piece))) for span in spans]
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
    if rows.document_ids is not None:
        ids = rows.document_ids[0]
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


_RUNNERS: dict[type, type[_EachAlone]] = {Mamba2: _Mamba, Attention: _Attention, MoE: _MoE}


def _runner(block: Block) -> _EachAlone:
    return _RUNNERS.get(type(block.mixer), _EachAlone)(block)
