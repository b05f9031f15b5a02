"""What Python and the C++ decoding step share: the structs of src/program.inl, and a step's indices."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_double, c_int64, c_void_p
from typing import NamedTuple

from torch import Tensor

from ..draw import Drawn, DrawTable
from ..rounded.products import Weights

MOST_SEQUENCES = 64
"""More sequences go op by op, where products are large enough to fill the machine."""


class Block(ctypes.Structure):
    """Weights and state of one block."""

    _fields_ = [
        ("kind", c_int64),
        ("norm", c_void_p),
        *((name, Weights) for name in ("input", "output", "second", "third")),
        *((name, c_void_p) for name in ("taps", "bias", "out_norm")),
        *((name, c_void_p) for name in ("A_log", "D", "dt_bias", "router", "router_bias")),
        *((name, c_void_p) for name in ("first_state", "second_state")),
        ("F", c_int64),
    ]


class Program(ctypes.Structure):
    """A model, and what one step is given."""

    _fields_ = [
        ("blocks", POINTER(Block)),
        ("embeddings", c_void_p),
        ("norm", c_void_p),
        ("head", Weights),
        *((name, c_int64) for name in ("n_blocks", "D", "V", "weight_type", "conv_type", "page_type", "rounded")),
        *((name, c_int64) for name in ("H", "P", "N", "G", "W", "heads", "R", "Dh", "E", "K", "F")),
        ("eps", c_double),
        ("routed_scale", c_double),
        *((name, c_int64) for name in ("n_slots", "n_pages", "page_size", "n", "table_width")),
        *((name, c_void_p) for name in ("tokens", "slots", "table", "lengths", "hidden", "logits")),
        ("chosen_experts", c_void_p),
        ("limit", c_int64),
        *((name, c_void_p) for name in ("draws", "ids", "log_probs")),
        ("scratch", c_void_p),
        ("scratch_bytes", c_int64),
        ("scratch_needed", c_int64),
    ]


class Chosen(NamedTuple):
    """Result of a step that chooses tokens."""

    tokens: list[Drawn | None]
    """Of each sequence; None where it has no draw."""
    logits: Tensor | None
    """(sequences without a draw, V) float32; None where all have one."""
    expert_ids: Tensor | None
    """(blocks with experts, n, K) int16, where they were asked for."""


class StepMemory:
    """A step's indices and its choices, at places that stay from one step to the next."""

    def __init__(self) -> None:
        row = c_int64 * MOST_SEQUENCES
        self.tokens, self.slots, self.lengths = row(), row(), row()
        self.draws = DrawTable(MOST_SEQUENCES)
        self.width = 0
        self._table = row()
        self._pages: list[list[int]] = []
        """What the rows of the table begin with."""

    def fill(
        self, tokens: Sequence[int], slots: Sequence[int], lengths: Sequence[int], pages: Sequence[list[int]]
    ) -> None:
        """Enter the indices of n sequences; of the page table, the rows that are not there yet."""
        n = len(tokens)
        self.tokens[:n], self.slots[:n], self.lengths[:n] = tokens, slots, lengths
        widest = max(map(len, pages))
        if widest > self.width or n > len(self._pages):
            self.width = max(self.width, 2 * widest)
            self._table, self._pages = (c_int64 * (n * self.width))(), [[]] * n
        for m, row in enumerate(pages):
            if row != self._pages[m]:
                self._pages[m] = []
                self._table[m * self.width : m * self.width + len(row)] = row
                self._pages[m] = list(row)

    def point(self, program: Program) -> None:
        """Have the program's next step read and write here."""
        program.table_width = self.width
        at = ctypes.addressof
        program.tokens, program.slots, program.lengths = at(self.tokens), at(self.slots), at(self.lengths)
        program.table = at(self._table)
        program.draws, program.ids, program.log_probs = self.draws.places
