"""Log-probabilities of targets, chunk by chunk; the backward pass makes a chunk's logits again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..common import LEAST_LOG_PROB, accumulator
from ..host_copies import places
from ..narrow import narrowed
from .loss import SMALLEST_LOG_PROB, default_chunk


def log_probs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    entropy: bool = False,
    ignore_index: int = -100,
    chunk_size: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """See nano3.kernels.log_probs."""
    found, entropies = _LogProbs.apply(hidden, weight, targets, 1 / temperature, entropy, ignore_index, chunk_size)
    return (found, entropies) if entropy else found


class _Head:
    """The weight in product type and one reused buffer for a chunk's logits, in the type of the sums."""

    def __init__(self, hidden: Tensor, weight: Tensor, sharp: float, chunk_size: int | None) -> None:
        self.wide, self.sharp = accumulator(hidden.dtype), sharp
        # CPUs have no narrow product with wide results in PyTorch: theirs would round the logits.
        self.product = hidden.dtype if hidden.is_cuda else self.wide
        self.weight = narrowed(weight, hidden.dtype).to(self.product)
        self.chunk = chunk_size or default_chunk(weight.shape[0] * self.wide.itemsize, hidden.device)
        rows = min(self.chunk, hidden.shape[0])
        self.buffer = torch.empty(rows, weight.shape[0], dtype=self.wide, device=hidden.device)

    def log_softmax(self, hidden: Tensor) -> Tensor:
        """(n, D) -> (n, V) log-probabilities in the buffer, valid until the next call."""
        out = self.buffer[: hidden.shape[0]]
        if self.product == self.wide:
            torch.mm(hidden.to(self.product), self.weight.t(), out=out)
        else:
            torch.mm(hidden, self.weight.t(), out_dtype=self.wide, out=out)
        return torch.ops.aten._log_softmax.out(out.mul_(self.sharp), -1, False, out=out)

    def gradients(self, hidden: Tensor, targets: Tensor, dlog_probs: Tensor, dentropies: Tensor | None) -> Tensor:
        """(n, V) gradients of a chunk's logits, in product type.

        With l the log-probabilities, p their exponentials, H = -sum p l, and g and h the gradients to l[target] and H:
        dlogits = sharp (g onehot(target) - p (g + h (l + H))).
        """
        log_probs = self.log_softmax(hidden).clamp_min_(SMALLEST_LOG_PROB)
        g = dlog_probs.unsqueeze(1) * self.sharp
        if dentropies is None:
            dlogits = log_probs.exp_().mul_(-g)
        else:
            probs, h = log_probs.exp(), dentropies.unsqueeze(1) * self.sharp
            entropies = -(probs * log_probs).sum(1, keepdim=True)
            dlogits = log_probs.add_(entropies).mul_(h).add_(g).mul_(probs).neg_()
        return dlogits.scatter_add_(1, targets.unsqueeze(1), g).to(self.product)


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden, weight, targets, sharp, entropy, ignore_index, chunk_size):
        head = _Head(hidden, weight, sharp, chunk_size)
        found = torch.zeros(targets.shape, dtype=head.wide, device=hidden.device)
        entropies = torch.zeros_like(found) if entropy else None
        for rows in _chunks(targets, ignore_index, head.chunk):
            log_probs = head.log_softmax(hidden[rows])
            found[rows] = log_probs.gather(1, targets[rows].unsqueeze(1)).squeeze(1)
            if entropies is not None:
                entropies[rows] = -(log_probs.exp() * log_probs.clamp_min_(LEAST_LOG_PROB)).sum(1)
        ctx.save_for_backward(hidden, weight, targets)
        ctx.options = sharp, ignore_index, chunk_size
        ctx.set_materialize_grads(False)
        return found, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dlog_probs: Tensor | None, dentropies: Tensor | None):
        hidden, weight, targets = ctx.saved_tensors
        sharp, ignore_index, chunk_size = ctx.options
        if dlog_probs is None:
            dlog_probs = torch.zeros(targets.shape, dtype=accumulator(hidden.dtype), device=hidden.device)
        asked = None
        if targets.device.type == "cpu":  # elsewhere only the device knows, and a wait costs more than zeros do
            asked = dlog_probs != 0 if dentropies is None else (dlog_probs != 0) | (dentropies != 0)
        head = _Head(hidden, weight, sharp, chunk_size)
        dhidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        dweight = torch.zeros(weight.shape, dtype=head.wide, device=weight.device) if ctx.needs_input_grad[1] else None
        for rows in _chunks(targets, ignore_index, head.chunk, asked):
            h = hidden[rows]
            dlogits = head.gradients(
                h, targets[rows], dlog_probs[rows], None if dentropies is None else dentropies[rows]
            )
            if dhidden is not None:
                dhidden[rows] = (dlogits @ head.weight).to(dhidden.dtype)
            if dweight is not None:
                _add(dweight, dlogits, h)
        return dhidden, None if dweight is None else dweight.to(weight.dtype), None, None, None, None, None


def _chunks(targets: Tensor, ignore_index: int, size: int, asked: Tensor | None = None) -> Sequence[Tensor | slice]:
    """Places with a target, of those `asked` for, `size` at a time."""

    def kept(ids: Tensor) -> Tensor:
        return ids != ignore_index if asked is None else (ids != ignore_index) & asked

    rows = places(targets, kept)
    if rows.numel() == targets.numel():  # nothing need be copied
        return [slice(start, start + size) for start in range(0, targets.numel(), size)]
    return rows.split(size) if rows.numel() else []


def _add(dweight: Tensor, dlogits: Tensor, hidden: Tensor) -> None:
    """dweight += dlogits^T hidden."""
    if dlogits.dtype == dweight.dtype:
        dweight.addmm_(dlogits.t(), hidden.to(dlogits.dtype))
    else:
        dweight += dlogits.t() @ hidden
