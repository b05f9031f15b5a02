"""The next token of each row of logits: the most probable one, or one drawn, in C++ (src/draw.inl)."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import addressof, c_double, c_int64
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from .call import L, P, declare, plain, run
from .native import native

declare(draw_tokens=(P, L, L, L, P, P, P))

Drawn = tuple[int, float, float]
"""Id; its log-probability under the softmax of the logits; the same under the distribution it was drawn from."""


class Draw(NamedTuple):
    """How to choose one row's token: temperature, then top-k, then top-p of what that leaves, then min-p."""

    temperature: float
    """0 takes the most probable token, whatever the rest says."""
    top_k: int
    """0: all."""
    top_p: float
    min_p: float
    uniform: float
    """Where in the distribution, above 0 and below 1."""


NOTHING = Draw(-1.0, 0, 1.0, 0.0, 0.5)
"""For a row whose token is not to be chosen."""
WIDTH = len(Draw._fields)


class DrawTable:
    """Draws of up to `size` rows and their results, as C++ reads and writes them."""

    def __init__(self, size: int) -> None:
        self._draws, self._ids, self._log_probs = (
            (c_double * (WIDTH * size))(),
            (c_int64 * size)(),
            (c_double * (2 * size))(),
        )
        self.places = addressof(self._draws), addressof(self._ids), addressof(self._log_probs)
        """Addresses of draws (size, 5) float64, ids (size,) int64, log-probabilities (size, 2) float64."""

    def fill(self, n: int, draws: Sequence[Draw]) -> None:
        """Enter the draws of the first n rows.

        Raises:
            ValueError: there are not n of them.
        """
        self._draws[: WIDTH * n] = tuple(chain.from_iterable(draws))

    def results(self, n: int) -> list[Drawn]:
        """Of the first n rows."""
        log_probs = self._log_probs[: 2 * n]
        return list(zip(self._ids[:n], log_probs[::2], log_probs[1::2], strict=True))


def draw_tokens(logits: Tensor, limit: int, draws: Sequence[Draw]) -> list[Drawn] | None:
    """The next token of each row; None (and nothing done) without the library, or where it cannot read the logits.

    A row depends on nothing but its own logits and draw. Among equal logits the smallest id comes first. A draw with
    a top-k below the limit or a top-p below 1 goes through the distribution from the most probable token down, any
    other by ids; `uniform` is how far. Where logits are nan, or the largest is infinite, the log-probabilities are
    nan and the id means nothing.

    Args:
        logits: (R, V) float32, contiguous, on the CPU.
        limit: only ids below it are chosen; the first log-probability counts all.
        draws: R of them; those with a negative temperature give nothing of meaning.

    Raises:
        ValueError: there are not R draws.
    """
    usable = native().library is not None and logits.dtype == torch.float32 and logits.dim() == 2 and plain(logits)
    if not usable or not logits.numel() or limit < 1:
        return None
    rows, width = logits.shape
    table = DrawTable(rows)
    table.fill(rows, draws)
    done = run("draw_tokens", logits.data_ptr(), rows, width, min(limit, width), *table.places)
    return table.results(rows) if done else None
