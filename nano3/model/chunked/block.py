"""A pass through one block in pieces, so that training on long sequences needs little memory.

A piece is a stretch of one row, or several whole short rows. Each mixer hands on what the next piece of the row needs:
a Mamba-2 block the end of its convolution and the state of its scan, an attention block the keys and values of the
whole row; the others nothing. A block keeps its input and the states between pieces. The backward pass goes through
the pieces from the last to the first and computes each again; gradients flow through what is handed on, so they are
those of the whole pass. Beside the block's input there are its output, or in the backward pass two gradients of that
size, and in attention keys, values and their gradients; all else is of one piece.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nano3.model.attention import Attention
from nano3.model.chunked.attention import AttentionPieces
from nano3.model.chunked.mamba2 import MambaPieces
from nano3.model.chunked.pieces import EachAlone, Gradients, Mixture, PreNorm, cut
from nano3.model.forward_pass import Pass
from nano3.model.mamba2 import Mamba2
from nano3.model.moe import MoE
from nano3.model.router import RouterStats

_PIECES: dict[type, type[EachAlone]] = {Mamba2: MambaPieces, Attention: AttentionPieces, MoE: Mixture}


def run_in_pieces(block: PreNorm, x: Tensor, around: Pass, most_tokens: int) -> tuple[Tensor, RouterStats | None]:
    """What `block` returns for x (B, T, D), at most `most_tokens` at a time; the backward pass computes it again.

    Args:
        block: norm and mixer.
        x: (B, T, D).
        around: what the pass knows; documents may go on from one piece to the next.
        most_tokens: tokens of one piece.
    """
    parameters = [p for p in block.parameters() if p.requires_grad]
    run = _pieces(block, around)
    given = run.enter(x, most_tokens)
    y, *extra = _InPieces.apply(block, around, most_tokens, len(given), x, *given, *parameters)
    return y, run.finish(extra)


def _pieces(block: PreNorm, around: Pass) -> EachAlone:
    return _PIECES.get(type(block.mixer), EachAlone)(block, around)


class _InPieces(torch.autograd.Function):
    """The parameters are arguments so that their gradients are returned, and not added behind a sharding's back."""

    @staticmethod
    def forward(ctx: Any, block: PreNorm, around: Pass, most_tokens: int, n_given: int, x: Tensor, *others: Tensor):
        run, y, kept = _pieces(block, around), torch.empty_like(x), []
        run.given = given = others[:n_given]
        for rows in cut(x, around, most_tokens):
            kept.append(run.forward(rows, y[rows.among]))
        extra = run.extra()
        ctx.save_for_backward(x, *given, *(state for states in kept for state in states))
        ctx.block, ctx.around, ctx.most_tokens, ctx.n_given = block, around, most_tokens, n_given
        ctx.counts = [len(states) for states in kept]
        ctx.mark_non_differentiable(*(m for m in extra if not m.is_floating_point()))
        ctx.set_materialize_grads(False)
        return y, *extra

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, *dextra: Tensor | None):
        x, *kept = ctx.saved_tensors
        given, kept = kept[: ctx.n_given], kept[ctx.n_given :]
        run, dx = _pieces(ctx.block, ctx.around), torch.empty_like(x)
        dy, run.given, run.above = torch.zeros_like(x) if dy is None else dy, given, dextra
        gradients = Gradients([p for p in ctx.block.parameters() if p.requires_grad])
        for count, rows in zip(ctx.counts, cut(x, ctx.around, ctx.most_tokens), strict=True):
            run.backward(rows, kept[:count], dy[rows.among], dx[rows.among], gradients)
            kept = kept[count:]
        return None, None, None, None, dx, *run.dgiven(), *gradients.sums
