"""What the passes in pieces of all mixers share (see nano3.model.chunked.block), and the pieces of mixers that act on
each token alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from nano3.model.forward_pass import Pass
from nano3.model.router import MergedStats, RouterStats


class PreNorm(Protocol):
    """A block: x + mixer(norm(x))."""

    norm: Any
    mixer: Any

    def parameters(self) -> Iterator[Any]:
        """All weights."""
        ...


class Rows(NamedTuple):
    """Rows that go through a block together."""

    x: Tensor
    """(R, T, D) input of the block."""
    around: Pass
    """What the pass knows of these rows."""
    pieces: list[slice]
    """Positions of each piece, in order; of more than one only where R is 1."""
    among: slice
    """Which rows of the batch they are."""

    def part(self, piece: slice) -> Pass:
        """What the pass knows of a piece."""
        return self.around.part(slice(None), piece)

    def ids(self, piece: slice) -> Tensor | None:
        """(R, piece) document ids."""
        ids = self.around.document_ids
        return None if ids is None else ids[:, piece]

    def continues(self, piece: slice) -> Tensor | None:
        """(R,) whether the piece's first token belongs to the document of the token before it; None: always."""
        ids = self.around.document_ids
        return None if ids is None or not piece.start else ids[:, piece.start] == ids[:, piece.start - 1]


def cut(x: Tensor, around: Pass, most_tokens: int) -> Iterator[Rows]:
    """Rows of x (B, T, D): short ones several at a time; a long one in pieces of equal length, the last may be
    shorter."""
    T = x.shape[1]
    pieces = [slice(start, min(start + most_tokens, T)) for start in range(0, T, most_tokens)]
    at_once = max(1, most_tokens // T)
    for first in range(0, len(x), at_once):
        among = slice(first, first + at_once)
        yield Rows(x[among], around.part(among, slice(None)), pieces, among)


def leaf(x: Tensor) -> Tensor:
    """The same values, to be differentiated by."""
    return x.detach().requires_grad_()


class Gradients:
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


class EachAlone:
    """One pass, forward or backward, in pieces through a mixer that acts on each token alone."""

    def __init__(self, block: PreNorm, around: Pass) -> None:
        self.block, self.around = block, around
        self.given: Sequence[Tensor] = ()
        """What `enter` returned."""
        self.above: Sequence[Tensor | None] = ()
        """Backward: gradients of what `extra` returned."""

    def enter(self, x: Tensor, most_tokens: int) -> list[Tensor]:
        """What the block needs of what lies before x (B, T, D), for each row: differentiable, asked for before the pass
        in pieces."""
        return []

    def forward(self, rows: Rows, y: Tensor) -> list[Tensor]:
        """Fill y (R, T, D); returns what the backward pass needs beside the input. Runs without gradients."""
        for piece in rows.pieces:
            y[:, piece] = self._one(rows.x[:, piece], rows.part(piece))
        return []

    def extra(self) -> list[Tensor]:
        """After all rows' forward pass: what the block returns beside y."""
        return []

    def backward(self, rows: Rows, kept: Sequence[Tensor], dy: Tensor, dx: Tensor, gradients: Gradients) -> None:
        """Fill dx (R, T, D), the gradient of the input, from dy, that of the output."""
        for piece in reversed(rows.pieces):
            x = leaf(rows.x[:, piece])
            with torch.enable_grad():
                y = self._one(x, rows.part(piece))
            dx[:, piece] = gradients.of([y], [dy[:, piece]], [x])[0]

    def dgiven(self) -> list[Tensor | None]:
        """After all rows' backward pass: gradients of `given`."""
        return [None] * len(self.given)

    def finish(self, extra: Sequence[Tensor]) -> RouterStats | None:
        """What the block reports, from what `extra` returned."""
        return None

    def _one(self, x: Tensor, around: Pass) -> Tensor:
        return x + self.block.mixer(self.block.norm(x), around, None)[0]


class Mixture(EachAlone):
    """Loads are counted in the forward pass alone: the backward pass makes the same choices again."""

    def __init__(self, block: PreNorm, around: Pass) -> None:
        super().__init__(block, around)
        self._probability: Tensor | None = None
        self._rows: list[list[Tensor]] = []

    def forward(self, rows: Rows, y: Tensor) -> list[Tensor]:
        parts = []
        for piece in rows.pieces:
            y[:, piece], stats = self._routed(rows.x[:, piece], rows.part(piece))
            probability = stats.probability
            self._probability = probability if self._probability is None else self._probability + probability
            parts.append([stats.row_loads, stats.row_probability, stats.row_choices])
            if self.around.keep_expert_ids:
                parts[-1].append(stats.expert_ids)
        sums = [torch.stack(column).sum(0) for column in list(zip(*parts, strict=True))[:3]]
        self._rows.append([*sums, *([torch.cat([p[3] for p in parts], 1)] if self.around.keep_expert_ids else [])])
        return []

    def extra(self) -> list[Tensor]:
        assert self._probability is not None, "a batch has rows"
        return [self._probability, *(torch.cat(column) for column in zip(*self._rows, strict=True))]

    def backward(self, rows: Rows, kept: Sequence[Tensor], dy: Tensor, dx: Tensor, gradients: Gradients) -> None:
        dprobability, _, drow_probability = self.above[:3]
        for piece in reversed(rows.pieces):
            x = leaf(rows.x[:, piece])
            with torch.enable_grad():
                y, stats = self._routed(x, rows.part(piece))
                outputs, above = [y], [dy[:, piece]]
                if dprobability is not None:
                    outputs.append(stats.probability)
                    above.append(dprobability)
                if drow_probability is not None:
                    outputs.append(stats.row_probability)
                    above.append(drow_probability[rows.among])
            dx[:, piece] = gradients.of(outputs, above, [x])[0]

    def finish(self, extra: Sequence[Tensor]) -> RouterStats | None:
        probability, row_loads, row_probability, row_choices, *expert_ids = extra
        kept, top_k = expert_ids[0] if expert_ids else None, self.block.mixer.gate.top_k
        return MergedStats(row_loads, row_choices, probability, row_probability, kept, top_k)

    def _routed(self, x: Tensor, around: Pass) -> tuple[Tensor, RouterStats]:
        y, stats = self.block.mixer(self.block.norm(x), around, None)
        return x + y, stats
