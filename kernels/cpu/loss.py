"""Cross-entropy of the output projection: products by PyTorch, what is between them in C++ (src/loss.inl)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..common import matmul_dtype
from ..eager import FUNCTIONS as EAGER
from .call import I, Kernel, L, P, declare, empty, integers, normal, readable, run
from .native import TYPES

LOGITS_BYTES = 128 * 1024 * 1024
"""Size of the reused logits buffer from which the default chunk follows: the products slow down below 1024 tokens."""
SMALLEST_CHUNK = 32
declare(softmax=(P, I, L, L, P, P, P))


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, ignore_index: int = -100, chunk_size: int | None = None
) -> Tensor:
    """See nano3.kernels.linear_cross_entropy."""
    if not _fits(hidden, weight, targets):
        return EAGER["linear_cross_entropy"](hidden, weight, targets, ignore_index=ignore_index, chunk_size=chunk_size)
    keep = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return _LinearCrossEntropy.apply(hidden, weight, targets, ignore_index, chunk_size, keep)


def _fits(hidden: Tensor, weight: Tensor, targets: Tensor) -> bool:
    shapes = hidden.dim() == weight.dim() == 2 and hidden.shape[1] == weight.shape[1] and weight.shape[0] > 0
    places = targets.dtype == torch.int64 and targets.shape == hidden.shape[:1] and targets.device.type == "cpu"
    return readable(hidden, weight) and shapes and places and not torch.compiler.is_compiling()


class _Logits:
    """The weight in product type and one reused buffer for a chunk's logits, in product type too."""

    def __init__(self, hidden: Tensor, weight: Tensor, rows: int, chunk_size: int | None) -> None:
        self.product = matmul_dtype(hidden.dtype, hidden.device)
        self.weight = weight.detach().to(self.product)
        row_bytes = weight.shape[0] * self.product.itemsize
        most = chunk_size or max(SMALLEST_CHUNK, LOGITS_BYTES // row_bytes)
        self.chunk = chunk_size or -(-rows // max(1, -(-rows // most))) or 1  # chunks of equal size
        self.buffer = empty(min(self.chunk, rows), weight.shape[0], dtype=self.product)

    def fill(self, hidden: Tensor) -> Tensor:
        """(n, D) -> (n, V) logits in the buffer, valid until the next call."""
        return torch.mm(hidden.to(self.product), self.weight.t(), out=self.buffer[: hidden.shape[0]])

    def softmax(self, logits: Tensor, targets: Tensor, log_probs: Tensor, inverse: Tensor | None) -> None:
        """Targets' log probabilities; with `inverse` (n,), logits become gradients that it has yet to scale."""
        n, outputs = logits.shape
        place = None if inverse is None else inverse.data_ptr()
        run(
            "softmax",
            logits.data_ptr(),
            TYPES[self.product],
            n,
            outputs,
            targets.data_ptr(),
            log_probs.data_ptr(),
            place,
        )


class _Grads:
    """Gradients of the chunks so far.

    The last chunk's share of the weight's gradient waits, at best until backward knows the factor for the sum: the
    product that adds it scales what is there as well, without a pass of its own over the whole gradient. What lives
    until then is that chunk and no weight in another type.
    """

    def __init__(self, product: torch.dtype, hidden: Tensor, wanted: tuple[bool, bool]) -> None:
        self.product = product
        self.dhidden = torch.empty_like(hidden, memory_format=torch.contiguous_format) if wanted[0] else None
        self.dweight: Tensor | None = None
        self.wanted = wanted
        self.waiting: tuple[Tensor, Tensor] | None = None

    def add(self, part: slice, hidden: Tensor, weight: Tensor, dlogits: Tensor, inverse: Tensor) -> None:
        """One chunk (n, D), whose logits' gradients (n, V) are yet to be scaled by `inverse` (n,)."""
        inverse = inverse.unsqueeze(1)
        if self.dhidden is not None:
            torch.mul(dlogits @ weight, inverse, out=self.dhidden[part])
        if self.wanted[1]:
            self.waiting = dlogits, (hidden * inverse).to(self.product)

    def settle(self, factor: float = 1.0) -> None:
        """Add what waits; the weight's gradient is then `factor` times the sum. The logits' buffer is free again."""
        if self.waiting is None:
            return
        (dlogits, h), self.waiting = self.waiting, None
        if self.product != torch.float32:
            share = dlogits.t() @ h
            self.dweight = share.float() if self.dweight is None else self.dweight.add_(share)
            _scale(self.dweight, factor)
        elif self.dweight is None:
            self.dweight = torch.mm(dlogits.t(), h if factor == 1.0 else h * factor)
        else:
            self.dweight.addmm_(dlogits.t(), h, beta=factor, alpha=factor)


def _scale(grad: Tensor, factor: float) -> Tensor:
    return grad if factor == 1.0 else grad.mul_(factor)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden, weight, targets, ignore_index, chunk_size, keep):
        rows = (targets != ignore_index).nonzero().squeeze(1)
        everything = rows.numel() == targets.numel()
        h = hidden.detach() if everything else hidden.detach()[rows]
        targets = targets.contiguous() if everything else targets[rows]
        logits = _Logits(hidden, weight, targets.numel(), chunk_size)
        log_probs = empty(targets.numel())
        grads = _Grads(logits.product, h, ctx.needs_input_grad[:2]) if keep else None
        for start in range(0, targets.numel(), logits.chunk):
            part = slice(start, start + logits.chunk)
            if grads is None:
                logits.softmax(logits.fill(h[part]), targets[part], log_probs[part], None)
                continue
            grads.settle()
            chunk = logits.fill(h[part])
            inverse = empty(chunk.shape[0])
            logits.softmax(chunk, targets[part], log_probs[part], inverse)
            grads.add(part, h[part], logits.weight, chunk, inverse)
        ctx.grads, ctx.rows = grads, None if everything else rows
        ctx.shape, ctx.weight = hidden.shape, (weight.shape, weight.dtype)
        return -log_probs.sum(dtype=torch.float64).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor):
        if ctx.grads is None:
            raise RuntimeError("linear_cross_entropy: backward ran twice; its gradients are scaled in place and freed")
        grads, ctx.grads = ctx.grads, None
        factor = float(dloss)
        grads.settle(factor)
        dhidden, dweight = grads.dhidden, grads.dweight
        if dhidden is not None:
            dhidden = _scale(dhidden, factor)
            if ctx.rows is not None:
                dhidden = dhidden.new_zeros(ctx.shape).index_copy_(0, ctx.rows, dhidden)
        if grads.wanted[1]:
            shape, dtype = ctx.weight
            dweight = torch.zeros(shape, dtype=dtype, device="cpu") if dweight is None else dweight.to(dtype)
        return dhidden, dweight, None, None, None, None


def _case(g: torch.Generator, dtype: torch.dtype) -> tuple:
    targets = torch.randint(0, 71, (9,), generator=g, device="cpu").index_fill_(0, integers([2, 5]), -100)
    return normal(g, dtype, 9, 13), normal(g, dtype, 71, 13), targets


KERNELS = {
    "linear_cross_entropy": Kernel(linear_cross_entropy, "the softmax between its products", _case, True),
}
