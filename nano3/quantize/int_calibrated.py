"""The tensors of a 4-bit folder, calibrated: block by block, each looked at with all rows before it is rounded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from nano3.config.errors import UserError
from nano3.files import scratch_folder
from nano3.kernels.scaled import INTEGERS
from nano3.model.hf.names import is_stacked, named_tensors, published_name
from nano3.model.hf.read import check_stored
from nano3.model.lm import LM
from nano3.quantize.gptq import gptq
from nano3.quantize.hidden import HiddenFiles
from nano3.quantize.observe import Moments
from nano3.quantize.part_files import Part
from nano3.quantize.rows import CalibrationRows
from nano3.quantize.walk import Walk


@torch.no_grad()
def calibrated_parts(
    folder: Path, quantized: LM, dtype: torch.dtype, rows: CalibrationRows, out: Path
) -> Iterator[Part]:
    """All tensors of a plain folder, matrices by GPTQ.

    Every block sees what it would see in the plain model. One block at a time is in memory, and of each of its matrices
    (of an expert each) the moments of its inputs, (I, I) float32: 5.5 GB for a block of the 31.6B model.

    Args:
        folder: of a plain model.
        quantized: on the meta device, with the matrices that become integers as such.
        dtype: that the folder is stored in, and computed with.
        rows: to calibrate with.
        out: the folder to be written; the residual stream of the rows is kept on disk beside it meanwhile.

    Raises:
        UserError: weights or rows that do not fit the model, or an activation or weight that is not finite.
    """
    if rows.largest_id >= quantized.cfg.vocab_size:
        raise UserError(f"a calibration row has token {rows.largest_id}; the model has {quantized.cfg.vocab_size}")
    with torch.device("meta"):
        model = LM(quantized.cfg).eval()
    check_stored(model, folder)
    integers = {name for name, tensor in named_tensors(quantized) if tensor.dtype in INTEGERS}
    with scratch_folder(out) as work:
        walk = Walk(folder, model, dtype, rows, HiddenFiles(work, model.cfg.d_model, dtype))
        yield from _Rounding(folder, walk, integers).parts()


class _Rounding:
    """Through the model, from the embeddings to the output projection."""

    def __init__(self, folder: Path, walk: Walk, integers: set[str]) -> None:
        self.folder, self.walk, self.integers = folder, walk, integers

    def parts(self) -> Iterator[Part]:
        """All tensors."""
        walk = self.walk
        with walk.loaded("embeddings."):
            walk.embed()
            yield from self._rounded("embeddings.", Moments())
        for number in range(walk.model.cfg.n_blocks):
            found = Moments()
            with walk.loaded(f"blocks.{number}."):
                with self._finite(f"block {number}"):
                    walk.block(number, found)
                yield from self._rounded(f"blocks.{number}.", found)
        found = Moments()
        with walk.loaded("norm_f."):
            with self._finite("the output projection"):
                walk.final_norm(found)
            yield from self._rounded("norm_f.", found)
        with walk.loaded("lm_head."):
            yield from self._rounded("lm_head.", found)

    def _rounded(self, prefix: str, found: Moments) -> Iterator[Part]:
        for name, value in named_tensors(self.walk.model):
            if not name.startswith(prefix):
                continue
            if name not in self.integers:
                yield Part(name, None, value)
            elif is_stacked(name):
                for expert, matrix in enumerate(value):
                    yield self._matrix(name, expert, matrix, found)
            else:
                yield self._matrix(name, None, value, found)

    def _matrix(self, ours: str, expert: int | None, weight: Tensor, found: Moments) -> Part:
        if not bool(weight.isfinite().all()):
            raise UserError(f"{self.folder}: {published_name(ours, expert)}: holds a number that is not finite")
        module = (ours.partition(".mixer.")[2] or ours).removesuffix(".weight")
        return Part(ours, expert, gptq(weight, found.sums.pop((module, expert), None)))

    @contextmanager
    def _finite(self, where: str) -> Iterator[None]:
        try:
            yield
        except FloatingPointError as error:
            where = f"{self.folder}: {where}: {error}"
            raise UserError(f"{where}: look for damage in the model or the calibration rows") from None
