"""Every tensor of a quantized folder: type, scales, and how far its numbers are from those of the model before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from nano3.config.errors import UserError
from nano3.kernels import Scaled
from nano3.kernels.integers import MOST, ZERO, unpack
from nano3.kernels.scaled import E4M3, E4M3_MAX, INT4, INT8, INTEGERS
from nano3.model.hf.files import locate, open_weights
from nano3.model.hf.integers import PACKED, SHAPE
from nano3.quantize.fp8 import error_of

TOP = {E4M3: E4M3_MAX, INT8: MOST, INT4: ZERO}
"""Type of stored numbers -> their largest magnitude."""
OF_WEIGHTS = ("weight_scale", "input_scale", SHAPE)
"""Ends of the names of what belongs to a matrix."""


@dataclass(frozen=True)
class Tensor:
    """One stored tensor."""

    name: str
    dtype: str
    """As PyTorch names it; int4 for 4 bits, of which two or eight lie in one stored number."""
    shape: tuple[int, ...]
    """Of the matrix that it stands for."""
    bytes: int
    scale: float | None = None
    """The largest, where a matrix has several."""
    input_scale: float | None = None
    largest: float | None = None
    """Largest magnitude as a share of what the scale can express."""
    zeros: float | None = None
    """Share of the numbers that are 0."""
    error: float | None = None
    """Root of the mean squared difference from the model before, as a share of the root mean square there."""


def inspect(folder: Path, reference: Path | None = None) -> Iterator[Tensor]:
    """The tensors of a Hugging Face folder in the order of their names; scales belong to what they scale.

    Args:
        folder: quantized or not.
        reference: the folder before quantization, to which errors are told.

    Raises:
        UserError: a file that cannot be read, or a reference of another model.
    """
    files, before = locate(folder), locate(reference) if reference else {}
    for name in sorted(files):
        if name.endswith(OF_WEIGHTS):
            continue
        value = _read(folder, files, name)
        weight, scale = value.view(INT4) if name.endswith(PACKED) else value, _scale(folder, files, name)
        if weight.dtype not in TOP:
            dtype = str(value.dtype).removeprefix("torch.")
            own = float(value) if name.endswith("_scale") else None
            yield Tensor(name, dtype, tuple(value.shape), value.nbytes, own)
            continue
        dtype = "int4" if weight.dtype == INT4 else str(weight.dtype).removeprefix("torch.")
        width = weight.shape[-1] * (2 if weight.dtype == INT4 else 1)
        numbers = (unpack(weight) if weight.dtype == INT4 else weight).float()
        error = None
        if reference and scale is not None:
            error = _error(reference, before, _plain_name(name), Scaled(weight, scale))
        given = name.removesuffix("weight") + "input_scale"
        yield Tensor(
            name,
            dtype,
            (*weight.shape[:-1], width),
            value.nbytes,
            None if scale is None else float(scale.abs().amax()),
            float(_read(folder, files, given).float().amax()) if given in files else None,
            float(numbers.abs().max()) / TOP[weight.dtype],
            float((numbers == 0).float().mean()),
            error,
        )


def _read(folder: Path, files: dict[str, str], name: str) -> torch.Tensor:
    with open_weights(folder / files[name]) as handle:
        return handle.get_tensor(name)


def _scale(folder: Path, files: dict[str, str], name: str) -> torch.Tensor | None:
    """Of a matrix, in the shape that it is computed with; None where there is none."""
    stored = f"{_plain_name(name)}_scale"
    if stored not in files:
        return None
    scale = _read(folder, files, stored)
    if name.endswith(PACKED):
        return scale.half()
    return scale.float().squeeze(-1) if scale.dim() == 2 or scale.shape == (1,) else scale.float()


def _plain_name(name: str) -> str:
    """Of a matrix in an unquantized folder."""
    return f"{name.removesuffix(PACKED)}weight" if name.endswith(PACKED) else name


def _error(reference: Path, files: dict[str, str], name: str, value: Scaled) -> float:
    if name not in files:
        raise UserError(f"{reference}: has no {name}: give the folder that this one was made from")
    weight = _read(reference, files, name)
    if weight.shape != value.shape:
        raise UserError(f"{reference}: {name} has shape {tuple(weight.shape)}, here {tuple(value.shape)}: give the "
                        "folder that this one was made from")  # fmt: skip
    return error_of(weight if value.dtype in INTEGERS else weight.bfloat16(), value.data, value.scale)
