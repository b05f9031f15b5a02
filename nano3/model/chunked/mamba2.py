"""A pass in pieces through a Mamba-2 block; see nano3.model.chunked.block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nano3.model.chunked.pieces import EachAlone, Gradients, PreNorm, Rows, leaf
from nano3.model.forward_pass import Edge, Pass, where_rows
from nano3.model.mamba2 import MambaSlice


class MambaPieces(EachAlone):
    """Keeps the states (conv, ssm) that each piece but the first begins with; that one begins with what is given."""

    def __init__(self, block: PreNorm, around: Pass) -> None:
        super().__init__(block, around)
        self._ends: list[list[Tensor]] = []
        self._found: list[list[Tensor]] = []

    def enter(self, x: Tensor, most_tokens: int) -> list[Tensor]:
        start = self.around.enter(_SliceInPieces(self.block, x, self.around, most_tokens))
        return [state for state in start if state is not None]

    def forward(self, rows: Rows, y: Tensor) -> list[Tensor]:
        kept: list[Tensor] = []
        state = self._start(rows)
        for piece in rows.pieces:
            if piece.start:
                # Clones: a state may be a view of all that it was made from.
                state = [where_rows(rows.continues(piece), m).clone() for m in state]
                kept += state
            y[:, piece], *state = self._advance(rows.x[:, piece], rows.ids(piece), state)
        self._ends.append(state)
        return kept

    def extra(self) -> list[Tensor]:
        return [] if self.around.boundary is None else [torch.cat(ends) for ends in zip(*self._ends, strict=True)]

    def backward(self, rows: Rows, kept: Sequence[Tensor], dy: Tensor, dx: Tensor, gradients: Gradients) -> None:
        # Gradients of the state after the piece; of the last piece's there are none but those from outside.
        above = [None if d is None else d[rows.among] for d in self.above]
        starts = [self._start(rows), *(kept[i : i + 2] for i in range(0, len(kept), 2))]
        for piece, start in reversed(list(zip(rows.pieces, starts, strict=True))):
            x, state = leaf(rows.x[:, piece]), [leaf(m) for m in start]
            with torch.enable_grad():
                y, *ends = self._advance(x, rows.ids(piece), state)
            known = [(end, d) for end, d in zip(ends, above, strict=False) if d is not None]
            outputs, given = [y, *(end for end, _ in known)], [dy[:, piece], *(d for _, d in known)]
            dx[:, piece], *found = gradients.of(outputs, given, [x, *state])
            pairs = zip(found, state, strict=True)
            above = [where_rows(rows.continues(piece), torch.zeros_like(m) if d is None else d) for d, m in pairs]
        self._found.append([d for d in above if d is not None])

    def dgiven(self) -> list[Tensor | None]:
        return [torch.cat(found) for found in zip(*self._found, strict=True)]

    def finish(self, extra: Sequence[Tensor]) -> None:
        if self.around.boundary is not None:
            self.around.boundary.leave(self.around.block, Edge(*extra))

    def _start(self, rows: Rows) -> list[Tensor]:
        return [state[rows.among] for state in self.given]

    def _advance(self, x: Tensor, ids: Tensor | None, state: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Output for x (R, L, D) and the states after it, from those before it (none: the start)."""
        conv, ssm = state or (None, None)
        y, conv, ssm = self.block.mixer.advance(self.block.norm(x), ids, conv, ssm)
        return x + y, conv, ssm


class _SliceInPieces(MambaSlice):
    """Projects a piece when it is asked for, and again in the backward pass."""

    def __init__(self, block: PreNorm, x: Tensor, around: Pass, most_tokens: int) -> None:
        T = x.shape[1]
        super().__init__(block.mixer, around, [slice(t, min(t + most_tokens, T)) for t in range(0, T, most_tokens)])
        self._norm, self._x = block.norm, x

    def inputs(self, piece: slice) -> tuple[Tensor, Tensor]:
        return self.mixer.scan_inputs(self._norm(self._x[:, piece]))

    def advance(self, piece: slice, conv: Tensor | None, ssm: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return checkpoint(super().advance, piece, conv, ssm, use_reentrant=False)  # pyright: ignore
