"""How one flat pass over many sequences divides into them: which tokens, which state slot, which pages.

An engine packs the tokens of all sequences that it advances in a step into one row. Projections, norms and experts act
on the row as it is; the scan and attention follow the plan. It is made once a step on the host, for all blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise

import numpy as np
import torch
from torch import Tensor

from nano3.model.state.transfer import on_device

SHORT_PIECE = 128
"""Longest piece that is padded and computed together with others."""


@dataclass(frozen=True)
class Span:
    """Consecutive tokens of one sequence."""

    length: int
    """Tokens in this pass."""
    slot: int
    """Its state slot, which is advanced."""
    context: int = 0
    """Tokens of the sequence before these."""
    pages: Sequence[int] = ()
    """Its pages of keys and values, enough for context + length."""
    saves: tuple[tuple[int, int], ...] = ()
    """(tokens, slot): after that many tokens of the span, 0 < tokens <= length, the state is copied to that slot."""


@dataclass(frozen=True)
class Single:
    """One token of each of several sequences."""

    positions: slice | Tensor
    """Flat positions, a slice where they are consecutive."""
    slots: Tensor
    """(n,) int64."""


@dataclass(frozen=True)
class Long:
    """Many tokens of one sequence."""

    positions: slice
    slot: int


@dataclass(frozen=True)
class Padded:
    """Short pieces of several sequences, brought to one length."""

    positions: Tensor
    """(g, L) flat positions, 0 where padded."""
    lengths: Tensor
    """(g,)"""
    valid: Tensor
    """(g, L) bool."""
    tokens: Tensor
    """(n,) flat positions of all tokens, piece after piece."""
    cells: Tensor
    """(n,) their places among the g * L."""
    slots: Tensor
    """(g,)"""


@dataclass(frozen=True)
class Round:
    """Pieces of different sequences, independent of each other; then states to keep."""

    single: Single | None
    long: list[Long]
    padded: Padded | None
    saves: tuple[Tensor, Tensor] | None
    """(from slots, to slots)"""


@dataclass(frozen=True)
class _Piece:
    start: int
    length: int
    slot: int
    save_to: int | None


class Plan:
    """The spans of one pass, in the order of their tokens in the row."""

    def __init__(self, spans: Sequence[Span], page_size: int, device: torch.device | str = "cpu") -> None:
        self.spans, self.page_size, self.device = list(spans), page_size, torch.device(device)
        starts, total = [], 0
        for span in self.spans:
            starts.append(total)
            total += span.length
        self.starts = starts
        """Flat position of each span's first token."""
        self.n_tokens = total

    @cached_property
    def rounds(self) -> list[Round]:
        """The spans cut where states are kept; the r-th pieces of all spans make round r."""
        pieces = [_pieces(start, span) for start, span in zip(self.starts, self.spans, strict=True)]
        count = max((len(p) for p in pieces), default=0)
        return [self._round([p[r] for p in pieces if r < len(p)]) for r in range(count)]

    @cached_property
    def is_step(self) -> bool:
        """Whether it is one token of each of some sequences."""
        return bool(self.spans) and all(span.length == 1 for span in self.spans)

    @cached_property
    def has_saves(self) -> bool:
        """Whether any state is to be kept."""
        return any(span.saves for span in self.spans)

    @cached_property
    def slots(self) -> Tensor:
        """(n,) int64 state slot of each span."""
        return self._tensor(span.slot for span in self.spans)

    @cached_property
    def key_counts(self) -> Tensor:
        """(n,) int64 `key_lengths`."""
        return self._tensor(self.key_lengths)

    @cached_property
    def query_lengths(self) -> list[int]:
        """Tokens of each span."""
        return [span.length for span in self.spans]

    @cached_property
    def key_lengths(self) -> list[int]:
        """Tokens of each span's sequence, the span's own included."""
        return [span.context + span.length for span in self.spans]

    @cached_property
    def page_table(self) -> Tensor:
        """(n, most pages) int64."""
        used = [
            span.pages[: -(-keys // self.page_size)] for span, keys in zip(self.spans, self.key_lengths, strict=True)
        ]
        width = max(1, max(map(len, used), default=0))
        rows = [pages if len(pages) == width else [*pages, *[0] * (width - len(pages))] for pages in used]
        return on_device(np.array(rows, dtype=np.int64).reshape(len(rows), width), self.device)

    @cached_property
    def kv_positions(self) -> Tensor:
        """(n_tokens,) where each token's key and value go: page * page_size + offset."""
        size, spans = self.page_size, self.spans
        if self.is_step:  # the most frequent, and the one that others wait for
            return self._tensor(span.pages[span.context // size] * size + span.context % size for span in spans)
        parts = []
        for span in spans:
            first = span.context // size
            pages = np.asarray(span.pages[first : (span.context + span.length - 1) // size + 1], dtype=np.int64)
            places = np.arange(span.context, span.context + span.length)
            parts.append(pages[places // size - first] * size + places % size)
        return on_device(np.concatenate(parts) if parts else [], self.device)

    def written(self, rows: Tensor) -> Tensor:
        """What of keys or values (n_tokens, ...) goes to `kv_positions`: all."""
        return rows

    def _round(self, pieces: list[_Piece]) -> Round:
        single = [piece for piece in pieces if piece.length == 1]
        short = [piece for piece in pieces if 1 < piece.length <= SHORT_PIECE]
        long = [piece for piece in pieces if piece.length > SHORT_PIECE]
        if len(short) == 1:
            long, short = [*long, *short], []
        saves = [(piece.slot, piece.save_to) for piece in pieces if piece.save_to is not None]
        return Round(
            self._single(single) if single else None,
            [Long(slice(piece.start, piece.start + piece.length), piece.slot) for piece in long],
            self._padded(short) if short else None,
            (self._tensor(a for a, _ in saves), self._tensor(b for _, b in saves)) if saves else None,
        )

    def _single(self, pieces: list[_Piece]) -> Single:
        first, last = pieces[0].start, pieces[-1].start
        consecutive = last - first == len(pieces) - 1
        positions = slice(first, last + 1) if consecutive else self._tensor(piece.start for piece in pieces)
        return Single(positions, self._tensor(piece.slot for piece in pieces))

    def _padded(self, pieces: list[_Piece]) -> Padded:
        lengths = self._tensor(piece.length for piece in pieces)
        places = torch.arange(max(piece.length for piece in pieces), device=self.device)
        valid = places < lengths.unsqueeze(1)
        positions = (self._tensor(piece.start for piece in pieces).unsqueeze(1) + places).masked_fill(~valid, 0)
        # On the host, which knows the lengths: a mask as an index would make it wait for a GPU.
        rows = [range(piece.start, piece.start + piece.length) for piece in pieces]
        tokens = self._tensor(chain.from_iterable(rows))
        cells = self._tensor(m * len(places) + t for m, row in enumerate(rows) for t in range(len(row)))
        return Padded(positions, lengths, valid, tokens, cells, self._tensor(piece.slot for piece in pieces))

    def _tensor(self, values: Iterable[int]) -> Tensor:
        return on_device(list(values), self.device)


def _pieces(start: int, span: Span) -> list[_Piece]:
    cuts = [(0, None), *sorted(span.saves)]
    if cuts[-1][0] < span.length:
        cuts.append((span.length, None))
    return [
        _Piece(start + before, after - before, span.slot, save_to) for (before, _), (after, save_to) in pairwise(cuts)
    ]
