"""Calibration rows through a model of which one part is in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from nano3.model.forward_pass import Pass
from nano3.model.hf.read import allocate, fill_part
from nano3.model.lm import LM
from nano3.quantize.hidden import HiddenFiles
from nano3.quantize.observe import Watcher, observed
from nano3.quantize.rows import CalibrationRows


class Walk:
    """The parts of a model in their order: embeddings, blocks, final norm, output projection. Each is to be `loaded`
    before it computes; what the next one reads is kept on disk, so that a part can be done again."""

    def __init__(self, folder: Path, model: LM, dtype: torch.dtype, rows: CalibrationRows, hidden: HiddenFiles) -> None:
        """`folder`: of the weights; `model`: on the meta device; `dtype`: that parts are in memory in."""
        self.model, self.rows, self.hidden = model, rows, hidden
        self._folder, self._dtype = folder, dtype

    @contextmanager
    def loaded(self, prefix: str) -> Iterator[None]:
        """The tensors whose names begin so in memory."""
        allocate(self.model, self._dtype, "cpu", prefix)
        try:
            fill_part(self.model, self._folder, prefix)
            yield
        finally:
            allocate(self.model, self._dtype, "meta", prefix)

    def embed(self) -> None:
        """All rows to what enters the first block."""
        for batch in self.rows.batches():
            self.hidden.write(0, batch.start, self.model.embeddings(batch.tokens))

    def block(self, number: int, found: Watcher, tick: Callable[[int], None] = lambda tokens: None) -> None:
        """All rows through a block, shown to `found`; `tick` gets the number of tokens that are through.

        Raises:
            FloatingPointError: of `found`.
        """
        block, done = self.model.blocks[number], 0
        with observed(block, found):  # pyright: ignore[reportArgumentType]
            for batch in self.rows.batches():
                x = self.hidden.read(number, batch.start, batch.tokens.shape[1])
                y, _ = block(x, Pass(batch.document_ids, statistics=frozenset()).at(number, None))
                self.hidden.write(number + 1, batch.start, y)
                done += batch.tokens.shape[1]
                tick(done)

    def final_norm(self, found: Watcher) -> None:
        """All rows through the final norm, shown to `found` as inputs of `lm_head`.

        Raises:
            FloatingPointError: of `found`.
        """
        for batch in self.rows.batches():
            x = self.hidden.read(self.model.cfg.n_blocks, batch.start, batch.tokens.shape[1])
            found.see("lm_head", self.model.norm_f(x))
