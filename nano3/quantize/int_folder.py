"""A folder with integer matrices, made from the folder of a plain model."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from nano3.config.errors import UserError
from nano3.kernels.scaled import INTEGERS
from nano3.model.find import model_folder, refuse_adapter
from nano3.model.hf.checkpoint import Checkpoint, Source
from nano3.model.hf.config import read_config, read_stage
from nano3.model.hf.names import is_stacked, named_tensors, published_name
from nano3.model.hf.write import check_replaceable, copy_companions
from nano3.model.lm import LM
from nano3.quantize.int_calibrated import calibrated_parts
from nano3.quantize.int_formats import Bits, integer_model, quantize_matrix
from nano3.quantize.part_files import Part, write_parts
from nano3.quantize.rows import CalibrationRows


def quantize_folder(source: str | Path, out: Path, bits: Bits, rows: CalibrationRows | None = None) -> Path:
    """Write the model in `source` with all matrices as integers; tokenizer, chat template and settings come along.

    One matrix at a time is in memory, of which an expert's is one; with `rows` as calibrated_parts says.

    Args:
        source: run folder or Hugging Face folder.
        out: appears whole or not at all; a model there is replaced.
        bits: of a weight; activations are rounded to 8 as they come.
        rows: to calibrate 4 bits with (nano3.quantize.gptq); without, each number is rounded by itself.

    Returns:
        The folder that was read.

    Raises:
        UserError: the model is quantized already, an adapter, or cannot be in these bits; `out` is the model itself,
            or holds anything but a model; or rows that do not fit the model.
        ValueError: rows for 8 bits.
    """
    if rows is not None and bits != 4:
        raise ValueError("only 4 bits are calibrated")
    folder = plain_folder(source)
    if out.exists() and out.resolve() == folder.resolve():
        raise UserError(f"--out {out}: is the model itself; give another folder")
    check_replaceable(out)
    with Checkpoint(folder) as checkpoint:
        model, dtype = integer_model(read_config(folder), bits), checkpoint.dtype()
        model.stage = read_stage(folder)
        if rows is None:
            parts = _quantized(checkpoint, model, bits, dtype)
        else:
            parts = calibrated_parts(folder, model, dtype, rows, out)
        write_parts(model, dtype, parts, out, lambda new: copy_companions(folder, new))
    return folder


def _quantized(checkpoint: Checkpoint, model: LM, bits: Bits, dtype: torch.dtype) -> Iterator[Part]:
    """All tensors of a plain folder, one matrix of one expert at a time, those that `model` has as integers as such."""
    with torch.device("meta"):
        wanted = checkpoint.wanted(LM(model.cfg))
    integers = {name for name, tensor in named_tensors(model) if tensor.dtype in INTEGERS}
    for _, sources in groupby(wanted, key=lambda source: source.ours.split(".")[:2]):
        for source in sources:
            for expert, value in _experts(source, checkpoint.read(source.name)):
                if source.ours in integers:
                    where = f"{checkpoint.folder}: {published_name(source.ours, expert)}"
                    yield Part(source.ours, expert, quantize_matrix(value.to(dtype), bits, where))
                else:
                    yield Part(source.ours, expert, value)
        del value  # of the mapped file
        checkpoint.close()


def _experts(source: Source, value: Tensor) -> Iterator[tuple[int | None, Tensor]]:
    """What a stored tensor holds: a matrix each of experts that are stored together, else itself."""
    if source.expert is None and is_stacked(source.ours):
        yield from enumerate(value)
    else:
        yield source.expert, value


def plain_folder(source: str | Path) -> Path:
    """The Hugging Face folder of a model that can be quantized.

    Raises:
        UserError: no such model, one that is quantized already, or an adapter.
    """
    refuse_adapter(source)
    folder = model_folder(source)
    if (found := read_config(folder).quantization) is not None:
        raise UserError(f"{folder}: is quantized already ({found}): give the model that it was made from")
    return folder
