"""A pass through one block in pieces, so that training on long sequences needs little memory.

A piece is a stretch of one row, or several whole short rows. Each mixer hands on what the next piece of the row needs:
a Mamba-2 block the end of its convolution and the state of its scan, an attention block the keys and values of the
whole row; the others nothing. Every piece is recomputed in the backward pass, so that beside the block's input only
one piece is held. Gradients flow through what is handed on: they are those of the whole pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nano3.kernels import attention
from nano3.model.attention import Attention
from nano3.model.mamba2 import Mamba2
from nano3.model.moe import MoE
from nano3.model.router import RouterStats

if TYPE_CHECKING:
    from nano3.model.block import Block


class Piece(NamedTuple):
    """Positions start..stop of one or more rows."""

    x: Tensor
    """(R, stop - start, D) input of the block."""
    start: int
    stop: int
    document_ids: Tensor | None
    """(R, stop - start)."""
    continues: Tensor | None
    """(R,) bool: whether the piece's first token belongs to the document of the token before it; None: it does in all
    rows."""


def run_in_pieces(
    block: Block, x: Tensor, document_ids: Tensor | None, most_tokens: int, recompute: bool
) -> tuple[Tensor, RouterStats | None]:
    """What `block` returns for x (B, T, D), at most `most_tokens` at a time.

    Args:
        block: norm and mixer.
        x: (B, T, D).
        document_ids: (B, T) or None; documents may go on from one piece to the next.
        most_tokens: tokens of one piece.
        recompute: keep only inputs of pieces for the backward pass, and compute the rest again there.
    """
    T = x.shape[1]
    rows_at_once = max(1, most_tokens // T)
    call = _recomputed if recompute else _called
    outputs, stats = [], []
    for first, rows in zip(range(0, len(x), rows_at_once), x.split(rows_at_once), strict=True):
        ids = None if document_ids is None else document_ids[first : first + rows_at_once]
        y, parts = _RUNS.get(type(block.mixer), _each_alone)(block, list(_pieces(rows, ids, most_tokens)), ids, call)
        outputs.append(torch.cat(y, dim=1) if len(y) > 1 else y[0])
        stats += parts
    y = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    return y, MergedStats(stats, x.shape[0] * T) if stats else None


class MergedStats(RouterStats):
    """Routing statistics of all pieces together."""

    def __init__(self, parts: list[tuple[Tensor, Tensor]], tokens: int) -> None:
        """From each piece's load (E,) int64 and sum over tokens of normalised scores (E,)."""
        self.load = torch.stack([load for load, _ in parts]).sum(0)
        self._probability = torch.stack([probability for _, probability in parts]).sum(0) / tokens

    @property
    def balance_loss(self) -> Tensor:
        """Scalar: E * sum_e f_e P_e over all tokens, 1 when routing is even."""
        fraction = self.load.to(self._probability.dtype) / self.load.sum()
        return len(self.load) * torch.dot(fraction, self._probability)


def _called(run: Callable[..., Any], *inputs: Any) -> Any:
    return run(*inputs)


def _recomputed(run: Callable[..., Any], *inputs: Any) -> Any:
    return checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=False)


def _pieces(x: Tensor, document_ids: Tensor | None, most_tokens: int) -> Iterator[Piece]:
    """Pieces of equal length, the last may be shorter; gradients come back through one split, not one slice each."""
    start = 0
    for part in x.split(min(most_tokens, x.shape[1]), dim=1):
        stop = start + part.shape[1]
        ids = continues = None
        if document_ids is not None:
            ids = document_ids[:, start:stop]
            continues = ids[:, 0] == document_ids[:, start - 1] if start else torch.ones_like(ids[:, 0]).bool()
        yield Piece(part, start, stop, ids, continues)
        start = stop


def _each_alone(block: Block, pieces: list[Piece], ids: Tensor | None, call: Callable) -> tuple[list[Tensor], list]:
    """A mixer that acts on each token alone."""

    def run(x: Tensor) -> Tensor:
        return x + block.mixer(block.norm(x), None, None)[0]

    return [call(run, piece.x) for piece in pieces], []


def _moe(block: Block, pieces: list[Piece], ids: Tensor | None, call: Callable) -> tuple[list[Tensor], list]:
    """Loads are counted in the forward pass alone: what the backward pass computes again is thrown away."""

    def run(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, stats = block.mixer(block.norm(x), None, None)
        return x + y, stats.load, stats.probabilities.sum(0)

    results = [call(run, piece.x) for piece in pieces]
    return [y for y, _, _ in results], [(load, probability) for _, load, probability in results]


def _mamba(block: Block, pieces: list[Piece], ids: Tensor | None, call: Callable) -> tuple[list[Tensor], list]:
    mixer = cast(Mamba2, block.mixer)

    def run(x: Tensor, document_ids: Tensor | None, conv: Tensor | None, ssm: Tensor | None):
        y, conv, ssm = mixer.advance(block.norm(x), document_ids, conv, ssm)
        return x + y, conv, ssm

    outputs, conv, ssm = [], None, None
    for piece in pieces:
        if piece.continues is not None and conv is not None and ssm is not None:
            conv, ssm = (torch.where(_like(piece.continues, state), state, 0.0) for state in (conv, ssm))
        y, conv, ssm = call(run, piece.x, piece.document_ids, conv, ssm)
        outputs.append(y)
    return outputs, []


def _like(rows: Tensor, state: Tensor) -> Tensor:
    """(R,) -> (R, 1, 1, ...) with as many dimensions as `state`."""
    return rows.view(-1, *[1] * (state.dim() - 1))


def _attention(block: Block, pieces: list[Piece], ids: Tensor | None, call: Callable) -> tuple[list[Tensor], list]:
    """All keys and values first, then the queries of each piece against those of its documents."""
    mixer = cast(Attention, block.mixer)
    if len(pieces) == 1:

        def whole(x: Tensor) -> Tensor:
            return x + mixer(block.norm(x), ids, None)[0]

        return [call(whole, pieces[0].x)], []

    def keys_values(x: Tensor) -> tuple[Tensor, Tensor]:
        normed = block.norm(x)
        return mixer.keys(normed), mixer.values(normed)

    def run(x: Tensor, k: Tensor, v: Tensor, spans: list[Span], document_ids: Tensor | None) -> Tensor:
        q = mixer.queries(block.norm(x))
        return x + mixer.o_proj(_attend(q, k, v, spans, document_ids).flatten(-2))

    parts = [call(keys_values, piece.x) for piece in pieces]
    k, v = (torch.cat([part[i] for part in parts], dim=1) for i in range(2))
    del parts
    starts = None if ids is None else _document_starts(ids[0])
    outputs = []
    for piece in pieces:
        spans = _spans(piece, starts)
        first = spans[0].keys
        near = (m[:, first : piece.stop] for m in (k, v))
        shifted = [Span(s.start - piece.start, s.stop - piece.start, s.keys - first) for s in spans]
        outputs.append(call(run, piece.x, *near, shifted, piece.document_ids))
    return outputs, []


class Span(NamedTuple):
    """Queries start..stop of a row that see no key before `keys`."""

    start: int
    stop: int
    keys: int


def _document_starts(ids: Tensor) -> list[int]:
    """Positions of a row (T,) at which a document starts, but for 0."""
    return (torch.nonzero(ids[1:] != ids[:-1]).flatten() + 1).tolist()


def _spans(piece: Piece, starts: list[int] | None) -> list[Span]:
    """The end of a document that began before the piece, then all that begin inside it."""
    before = [start for start in starts or [] if start <= piece.start]
    inside = [start for start in starts or [] if piece.start < start < piece.stop]
    begin = before[-1] if before else 0
    if begin == piece.start:
        return [Span(piece.start, piece.stop, piece.start)]
    end = inside[0] if inside else piece.stop
    spans = [Span(piece.start, end, begin)]
    return [*spans, Span(end, piece.stop, end)] if end < piece.stop else spans


def _attend(q: Tensor, k: Tensor, v: Tensor, spans: list[Span], document_ids: Tensor | None) -> Tensor:
    """q (1, T, Hq, Dh) of a piece; k and v (1, S, Hkv, Dh) from the first span's keys to the piece's end."""
    shift = k.shape[1] - q.shape[1]
    outputs = []
    for span in spans:
        whole = span.keys == span.start + shift
        ids = document_ids[:, span.start : span.stop] if whole and document_ids is not None else None
        keys, values = (m[:, span.keys : span.stop + shift] for m in (k, v))
        outputs.append(attention(q[:, span.start : span.stop], keys, values, document_ids=ids))
    return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]


_RUNS: dict[type, Callable[..., tuple[list[Tensor], list]]] = {Mamba2: _mamba, Attention: _attention, MoE: _moe}
