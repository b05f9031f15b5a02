"""A folder of random integers in the shape of a model, written without ever holding the model: to measure with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from nano3.config.model import ModelConfig
from nano3.kernels import Scaled
from nano3.kernels.integers import GROUP, MOST, ZERO
from nano3.kernels.scaled import INT4, INTEGERS
from nano3.model.hf.names import is_stacked, named_tensors
from nano3.model.hf.write import check_replaceable
from nano3.model.init import deviation, generator_of, initial_values
from nano3.quantize.int_formats import Bits, integer_model
from nano3.quantize.part_files import Part, write_parts

DEVIATION = {4: math.sqrt(sum(n * n for n in range(-ZERO, ZERO)) / (2 * ZERO)), 8: math.sqrt(MOST * (MOST + 1) / 3)}
"""Bits -> standard deviation of even integers of so many bits; of 4 bits around 0, since the sign of scales is even."""


def write_random(
    cfg: ModelConfig, out: Path, bits: Bits, seed: int = 0, extra: Callable[[Path], None] | None = None
) -> None:
    """Write a Hugging Face folder of a model that never was: integers drawn evenly, with scales that give each matrix
    the standard deviation of initial weights; all else are initial weights, bfloat16 where they are matrices.

    The 31.6B model in 4 bits is 18 GB. Numbers hang on the seed and the tensor's name alone.

    Args:
        cfg: the shape.
        out: appears whole or not at all; a model there is replaced.
        bits: of a weight.
        seed: of the numbers.
        extra: writes what else belongs in the folder.

    Raises:
        UserError: rows that are no multiple of 32 for 4 bits, too little disk, or `out` holds anything but a model.
    """
    check_replaceable(out)
    model = integer_model(cfg, bits)
    write_parts(model, torch.bfloat16, _parts(dict(named_tensors(model)), cfg, seed), out, extra)


def _parts(tensors: dict[str, Tensor], cfg: ModelConfig, seed: int) -> Iterator[Part]:
    for name, tensor in tensors.items():
        if name.endswith("_scale"):
            continue
        if name.endswith("e_score_correction_bias"):
            yield Part(name, None, torch.zeros(tensor.shape))
        elif tensor.dtype in INTEGERS:
            generator, shape = generator_of(name, seed), tensor.shape[-2:]
            for expert in range(len(tensor)) if is_stacked(name) else [None]:
                yield Part(name, expert, _integers(shape, tensor.dtype, deviation(name, cfg), generator))
        else:
            yield Part(name, None, initial_values(name, tensor.shape, cfg, seed))


def _integers(shape: torch.Size, dtype: torch.dtype, wanted: float, generator: torch.Generator) -> Scaled:
    """A matrix whose stored numbers have this shape."""
    data = _bytes(shape.numel(), generator).view(shape)
    if dtype != INT4:
        data = data.view(dtype).clamp_(min=-MOST)
        return Scaled(data, torch.full(shape[:1], wanted / DEVIATION[8]))
    groups = shape[0], shape[1] * 2 // GROUP
    signs = _bytes(math.prod(groups), generator).view(groups) & 1
    return Scaled(data, ((2.0 * signs - 1.0) * (wanted / DEVIATION[4])).half())


def _bytes(count: int, generator: torch.Generator) -> Tensor:
    words = torch.empty(-(-count // 8), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    return words.view(torch.uint8)[:count]
