"""A folder with integer matrices, made from the folder of a plain model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from nano3.config.errors import UserError
from nano3.model.find import model_folder, refuse_adapter
from nano3.model.hf.folder import load, read_config, save
from nano3.model.hf.write import check_replaceable, copy_companions
from nano3.quantize.int_formats import quantize_integers


def quantize_folder(source: str | Path, out: Path, bits: Literal[8, 4]) -> Path:
    """Write the model in `source` with all matrices as integers; tokenizer, chat template and settings come along.

    Args:
        source: run folder or Hugging Face folder.
        out: appears whole or not at all; a model there is replaced.
        bits: of a weight; activations are rounded to 8 as they come.

    Returns:
        The folder that was read.

    Raises:
        UserError: the model is quantized already, an adapter, or cannot be in these bits; or `out` is the model itself,
            or holds anything but a model.
    """
    folder = plain_folder(source)
    if out.exists() and out.resolve() == folder.resolve():
        raise UserError(f"--out {out}: is the model itself; give another folder")
    check_replaceable(out)
    model = load(folder)
    quantize_integers(model, bits)
    save(model, out, extra=lambda new: copy_companions(folder, new))
    return folder


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
