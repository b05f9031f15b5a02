"""Cross-entropy of the output projection, chunk by chunk: gradients are made while a chunk's logits are at hand."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..common import accumulator, matmul_dtype
from ..host_copies import places
from ..narrow import narrowed

LOGITS_BYTES, MOST_LOGITS_BYTES = 64 << 20, 2 << 30
"""Sizes of the reused logits buffer from which the default chunk follows: on CPUs, and the largest on GPUs."""
LOGITS_SHARE = 64
"""A GPU's buffer is this part of its memory. Of all of it, not of what is free: sums are then the same each time."""
SMALLEST_CHUNK, SCALED_ROWS = 32, 4096
SMALLEST_LOG_PROB = -60.0
"""Floor under log probabilities in gradients: it changes none, and keeps products free of subnormal numbers, which
CPUs multiply a hundred times slower."""


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, ignore_index: int = -100, chunk_size: int | None = None
) -> Tensor:
    """See nano3.kernels.linear_cross_entropy."""
    keep = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return _LinearCrossEntropy.apply(hidden, weight, targets, ignore_index, chunk_size, keep)


def default_chunk(row_bytes: int, device: torch.device) -> int:
    """Rows of logits of so many bytes that are made at a time."""
    return max(SMALLEST_CHUNK, logits_bytes(device) // row_bytes)


@cache
def logits_bytes(device: torch.device) -> int:
    """Of the buffer on this device: 128 rows of a large vocabulary fill a CPU, and leave a GPU idle."""
    if device.type != "cuda":
        return LOGITS_BYTES
    whole = torch.cuda.get_device_properties(device).total_memory
    return min(MOST_LOGITS_BYTES, max(LOGITS_BYTES, whole // LOGITS_SHARE))


class _Logits:
    """The weight in product type and one reused buffer for a chunk's logits."""

    def __init__(self, hidden: Tensor, weight: Tensor, chunk_size: int | None) -> None:
        self.wide = accumulator(hidden.dtype)
        self.product = matmul_dtype(hidden.dtype, hidden.device)
        self.weight = narrowed(weight, self.product)
        self.chunk = chunk_size or default_chunk(weight.shape[0] * self.wide.itemsize, hidden.device)
        rows = min(self.chunk, hidden.shape[0])
        self.buffer = torch.empty(rows, weight.shape[0], dtype=self.wide, device=hidden.device)

    def log_softmax(self, hidden: Tensor) -> Tensor:
        """(n, D) -> (n, V) log probabilities in the buffer, valid until the next call."""
        out = self.buffer[: hidden.shape[0]]
        if self.product == self.wide:
            torch.mm(hidden.to(self.product), self.weight.t(), out=out)
        else:
            out.copy_(hidden @ self.weight.t())
        return torch.ops.aten._log_softmax.out(out, -1, False, out=out)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden, weight, targets, ignore_index, chunk_size, keep):
        kept = places(targets, lambda ids: ids != ignore_index)
        logits = _Logits(hidden, weight, chunk_size)
        loss = torch.zeros((), dtype=logits.wide, device=hidden.device)
        dhidden = torch.zeros_like(hidden) if keep and ctx.needs_input_grad[0] else None
        dweight = None
        if keep and ctx.needs_input_grad[1]:
            dweight = torch.zeros(weight.shape, dtype=logits.wide, device=weight.device)
        for rows in kept.split(logits.chunk):
            h, target = hidden[rows], targets[rows].unsqueeze(1)
            log_probs = logits.log_softmax(h)
            loss -= log_probs.gather(1, target).sum()
            if keep:
                minus_one = log_probs.new_full((), -1.0).expand_as(target)
                dlogits = log_probs.clamp_min_(SMALLEST_LOG_PROB).exp_().scatter_add_(1, target, minus_one)
                _add_grads(logits, dlogits, h, rows, dhidden, dweight)
        ctx.grads, ctx.weight_dtype = (dhidden, dweight), weight.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor):
        if ctx.grads is None:
            raise RuntimeError("linear_cross_entropy: backward ran twice; its gradients are scaled in place and freed")
        (dhidden, dweight), ctx.grads = ctx.grads, None
        if dhidden is not None:
            _scale(dhidden, dloss)
        if dweight is not None:
            dweight = dweight.mul_(dloss).to(ctx.weight_dtype)
        return dhidden, dweight, None, None, None, None


def _scale(grad: Tensor, factor: Tensor) -> None:
    """grad *= factor in the type of the latter, which rounded to a narrow one would be wrong for all numbers alike."""
    if grad.dtype == factor.dtype:
        grad.mul_(factor)
        return
    for rows in grad.split(SCALED_ROWS):
        rows.copy_(rows.to(factor.dtype).mul_(factor))


def _add_grads(
    logits: _Logits, dlogits: Tensor, h: Tensor, rows: Tensor, dhidden: Tensor | None, dweight: Tensor | None
) -> None:
    """Gradients of one chunk: rows of dhidden, a sum into dweight (V, D)."""
    dlogits = dlogits.to(logits.product)
    if dhidden is not None:
        dhidden[rows] = (dlogits @ logits.weight).to(dhidden.dtype)
    if dweight is not None:
        h = h.to(logits.product)
        if logits.product == logits.wide:
            dweight.addmm_(dlogits.t(), h)
        else:
            dweight += dlogits.t() @ h
