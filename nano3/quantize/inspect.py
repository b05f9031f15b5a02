"""Every tensor of a quantized folder: type, scales, and how far its numbers are from those of the model before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from nano3.config.errors import UserError
from nano3.kernels.scaled import E4M3, E4M3_MAX
from nano3.model.hf.files import locate, open_weights
from nano3.quantize.fp8 import error_of

SMALLEST = 2.0**-10
"""Half of e4m3's smallest number: what is below it becomes 0."""


@dataclass(frozen=True)
class Tensor:
    """One stored tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    scale: float | None = None
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
        if name.endswith(("weight_scale", "input_scale")):
            continue
        with open_weights(folder / files[name]) as handle:
            value = handle.get_tensor(name)
            shape = tuple(value.shape)
            dtype = str(value.dtype).removeprefix("torch.")
            if value.dtype != E4M3:
                yield Tensor(name, dtype, shape, value.nbytes, float(value) if name.endswith("_scale") else None)
                continue
            scale, given = _scale(folder, files, f"{name}_scale"), name.removesuffix("weight") + "input_scale"
            inputs = _scale(folder, files, given)
            magnitudes = value.float().abs()
            largest, zeros = float(magnitudes.max()) / E4M3_MAX, float((magnitudes == 0).float().mean())
            error = None
            if reference and scale is not None:
                error = _error(reference, before, name, value, scale)
            yield Tensor(name, dtype, shape, value.nbytes, scale, inputs, largest, zeros, error)


def _scale(folder: Path, files: dict[str, str], name: str) -> float | None:
    if name not in files:
        return None
    with open_weights(folder / files[name]) as handle:
        return float(handle.get_tensor(name).float().amax())


def _error(reference: Path, files: dict[str, str], name: str, value: torch.Tensor, scale: float) -> float:
    if name not in files:
        raise UserError(f"{reference}: has no {name}: give the folder that this one was made from")
    with open_weights(reference / files[name]) as handle:
        weight = handle.get_tensor(name)
    if weight.shape != value.shape:
        raise UserError(f"{reference}: {name} has shape {tuple(weight.shape)}, here {tuple(value.shape)}: give the "
                        "folder that this one was made from")  # fmt: skip
    return error_of(weight.bfloat16(), value, torch.tensor(scale))
