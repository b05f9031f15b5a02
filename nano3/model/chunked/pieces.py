"""What the passes in pieces of all mixers share (see nano3.model.chunked.block), and the pieces of mixers that act on
each token alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from nano3.model.forward_pass import Pass
from nano3.model.router import SUMS, MergedStats, RouterStats

OF_ROWS = {"row_choices", "row_probability", "expert_ids"}
"""Statistics with a row for each of the batch; the others are of all rows together."""


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
                # Of weights that were gathered in bfloat16 (parallel.gather_dtype): their sum must not round.
                self.sums[i] = gradient.to(torch.promote_types(gradient.dtype, torch.float32)).contiguous()
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
    """Choices are counted in the forward pass alone: the backward pass makes the same ones again."""

    def __init__(self, block: PreNorm, around: Pass) -> None:
        super().__init__(block, around)
        wanted = dict.fromkeys(name for kind in sorted(around.statistics) for name in SUMS[kind])
        self._names = [*wanted, *(["expert_ids"] if around.keep_expert_ids else [])]
        """What the block reports, in the order of `extra` and `above`."""
        self._found: dict[str, list[Tensor]] = {name: [] for name in self._names}

    def forward(self, rows: Rows, y: Tensor) -> list[Tensor]:
        parts: dict[str, list[Tensor]] = {name: [] for name in self._names}
        for piece in rows.pieces:
            y[:, piece], stats = self._routed(rows.x[:, piece], rows.part(piece))
            for name, values in parts.items():
                values.append(getattr(stats, name))
        for name, values in parts.items():
            self._found[name] += _of_pieces(name, values)
        return []

    def extra(self) -> list[Tensor]:
        return [
            torch.cat(found) if name in OF_ROWS else sum(found[1:], found[0]) for name, found in self._found.items()
        ]

    def backward(self, rows: Rows, kept: Sequence[Tensor], dy: Tensor, dx: Tensor, gradients: Gradients) -> None:
        known = [(name, d) for name, d in zip(self._names, self.above, strict=True) if d is not None]
        for piece in reversed(rows.pieces):
            x = leaf(rows.x[:, piece])
            with torch.enable_grad():
                y, stats = self._routed(x, rows.part(piece))
                outputs = [y, *(getattr(stats, name) for name, _ in known)]
            above = [dy[:, piece], *(d[rows.among] if name in OF_ROWS else d for name, d in known)]
            dx[:, piece] = gradients.of(outputs, above, [x])[0]

    def finish(self, extra: Sequence[Tensor]) -> RouterStats | None:
        return MergedStats(dict(zip(self._names, extra, strict=True)), self.block.mixer.gate.top_k)

    def _routed(self, x: Tensor, around: Pass) -> tuple[Tensor, RouterStats]:
        y, stats = self.block.mixer(self.block.norm(x), around, None)
        return x + y, stats


def _of_pieces(name: str, values: list[Tensor]) -> list[Tensor]:
    """A statistic of all pieces of some rows: one where it has a row for each, and as they are where not."""
    if name == "expert_ids":
        return [torch.cat(values, 1)]
    return [torch.stack(values).sum(0)] if name in OF_ROWS else values
