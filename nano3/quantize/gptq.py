"""4-bit numbers chosen for what a matrix is multiplied by, not for the matrix: GPTQ (arXiv 2210.17323)."""

from __future__ import annotations

import torch
from torch import Tensor

from nano3.kernels import Scaled
from nano3.kernels.integers import GROUP, ZERO, pack

DAMPING = 0.01
"""Added to the diagonal of the moments, as a share of its mean (the paper's section 3.3): few tokens leave it open."""
LEAST, MOST = -ZERO, ZERO - 1
STEPS = [5.5 + i / 4 for i in range(15)]
"""Steps to the number of largest magnitude that are tried, with either sign. Below 8 the others get coarser steps that
may fit them better; above it that number is cut off, and the others get finer ones."""


def gptq(matrix: Tensor, moments: Tensor | None = None) -> Scaled:
    """A matrix in groups of 32 numbers of 4 bits that keeps its products with some activations.

    One column of numbers after the other is rounded, and the columns behind it, not rounded yet, make up for its error
    as far as the activations allow. A group's scale is chosen by `best_scales` when its first column comes.

    Args:
        matrix: (O, I), finite, I a multiple of 32.
        moments: (I, I), the sum of x x^T over inputs x; None: none is known, and each group is rounded by itself.

    Returns:
        Numbers and scales in the form of nano3.kernels.integers.int4_groups, of which these are others.
    """
    left = matrix.detach().float().clone()
    spread = None if moments is None else _spread(moments)
    codes = torch.empty(left.shape, dtype=torch.uint8)
    scales = torch.empty(left.shape[0], left.shape[1] // GROUP, dtype=torch.float16)
    for start in range(0, left.shape[1], GROUP):
        here = slice(start, start + GROUP)
        group = left[:, here]
        scale = best_scales(group)
        scales[:, start // GROUP] = scale.half()
        own = None if spread is None else spread[here, here]
        numbers, errors = _round(group, scale, own)
        codes[:, here] = (numbers + ZERO).to(torch.uint8)
        if spread is not None:
            left[:, start + GROUP :] -= errors @ spread[here, start + GROUP :]
    return Scaled(pack(codes), scales)


def best_scales(groups: Tensor) -> Tensor:
    """(..., 32) float32 -> (...): of each group the scale, a float16 number, that leaves the least squared error; of
    each in a grid the one that fits its numbers best by least squares."""
    extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    best, least = torch.zeros_like(extreme), torch.full_like(extreme, torch.inf)
    for step in [sign * step for step in STEPS for sign in (-1, 1)]:
        numbers = _numbers(groups, extreme / step)
        energy = numbers.square().sum(-1, keepdim=True)
        fitted = torch.where(energy > 0, (groups * numbers).sum(-1, keepdim=True) / energy.clamp_min(1), 0)
        scale = _to_float16(fitted)
        error = (groups - scale * _numbers(groups, scale)).square().sum(-1, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best.squeeze(-1)


def _round(group: Tensor, scale: Tensor, spread: Tensor | None) -> tuple[Tensor, Tensor]:
    """Numbers (O, 32), and errors (O, 32) each over its own entry of the diagonal; `group` is overwritten."""
    if spread is None:
        return _numbers(group, scale.unsqueeze(1)), torch.zeros_like(group)
    numbers, errors = torch.empty_like(group), torch.empty_like(group)
    for column in range(GROUP):
        numbers[:, column] = _numbers(group[:, column], scale)
        error = (group[:, column] - numbers[:, column] * scale) / spread[column, column]
        errors[:, column] = error
        group[:, column:] -= error.unsqueeze(1) * spread[column, column:]
    return numbers, errors


def _numbers(x: Tensor, scale: Tensor) -> Tensor:
    """x / scale, rounded to -8 .. 7; 0 where the scale is."""
    return (x * torch.where(scale == 0, 0, 1 / scale)).round().clamp(LEAST, MOST)


def _spread(moments: Tensor) -> Tensor:
    """The upper Cholesky factor of the moments' inverse: row i says by how much the columns behind i make up for it."""
    damped = moments.double().clone()
    diagonal = damped.diagonal()
    mean = diagonal.mean()
    diagonal[diagonal == 0] = mean if mean > 0 else 1  # an input that is always 0: its column is rounded by itself
    diagonal += DAMPING * mean
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()


def _to_float16(scale: Tensor) -> Tensor:
    most = torch.finfo(torch.float16).max
    return scale.clamp(-most, most).half().float()
