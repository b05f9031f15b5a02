"""Log-probabilities of targets: products by PyTorch, the softmax in C++ (src/log_probs.inl); both in C++ where the
processor multiplies bfloat16 (src/logits.inl), since PyTorch's bfloat16 products would round the logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..common import kept_rows
from ..eager import FUNCTIONS as EAGER
from .call import F, Kernel, L, P, declare, empty, integers, normal, readable, run
from .native import native

LOGITS_BYTES = 128 * 1024 * 1024
"""Size of the reused buffer of logits or their gradients from which the default chunk follows."""
SMALLEST_CHUNK = 32
declare(
    log_probs=(P, L, L, F, P, P, P, P, P),
    log_probs_backward=(P, L, L, F, P, P, P, P, P, P),
    log_probs_product=(P, L, P, L, L, F, P, P, P, P, P),
    log_probs_product_backward=(P, L, P, L, L, F, P, P, P, P, P, P, P),
)


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
    if not _fits(hidden, weight, targets):
        return EAGER["log_probs"](hidden, weight, targets, temperature, entropy, ignore_index, chunk_size)
    found, entropies = _LogProbs.apply(hidden, weight, targets, 1 / temperature, entropy, ignore_index, chunk_size)
    return (found, entropies) if entropy else found


def _fits(hidden: Tensor, weight: Tensor, targets: Tensor) -> bool:
    shapes = hidden.dim() == weight.dim() == 2 and hidden.shape[1] == weight.shape[1] and weight.shape[0] > 0
    places = targets.dtype == torch.int64 and targets.shape == hidden.shape[:1] and targets.device.type == "cpu"
    return readable(hidden, weight) and shapes and places and not torch.compiler.is_compiling()


class _Softmaxes(NamedTuple):
    """Of each of n rows, float32: the largest logit, and the logarithm of the sum of exponentials beyond it."""

    tops: Tensor
    log_sums: Tensor
    entropies: Tensor | None
    log_probs: Tensor | None = None

    @classmethod
    def empty(cls, n: int, entropy: bool) -> _Softmaxes:
        return cls(empty(n), empty(n), empty(n) if entropy else None, empty(n))

    def part(self, rows: slice | Tensor) -> _Softmaxes:
        """Those of some rows."""
        return self.each(lambda value: value[rows])

    def each(self, change: Callable[[Tensor], Tensor]) -> _Softmaxes:
        """With all tensors changed."""
        entropies, log_probs = (None if value is None else change(value) for value in self[2:])
        return _Softmaxes(change(self.tops), change(self.log_sums), entropies, log_probs)

    def places(self) -> Iterator[int | None]:
        """Where they are, in the order of the forward kernels."""
        return map(_place, (self.log_probs, self.tops, self.log_sums, self.entropies))


class _Head:
    """Logits of rows and what comes of them, a chunk at a time; the type of the products is that of `weight`."""

    def __init__(self, hidden: Tensor, weight: Tensor, targets: Tensor, sharp: float, chunk_size: int | None) -> None:
        self.type = torch.bfloat16 if native().rounds(hidden.dtype) else torch.float32
        self.hidden, self.targets, self.sharp = hidden.contiguous(), targets.contiguous(), sharp
        self.weight = weight.detach().to(hidden.dtype).to(self.type).contiguous()
        self.outputs = weight.shape[0]
        rows = targets.numel()
        most = chunk_size or max(SMALLEST_CHUNK, LOGITS_BYTES // (self.outputs * self.type.itemsize))
        self.chunk = chunk_size or -(-rows // max(1, -(-rows // most))) or 1  # chunks of equal size
        self.buffer = empty(0)

    def chunks(self) -> list[slice]:
        """All rows, in order."""
        return [slice(start, start + self.chunk) for start in range(0, self.targets.numel(), self.chunk)]

    def softmaxes(self, entropy: bool) -> _Softmaxes:
        """Of all rows."""
        found = _Softmaxes.empty(self.targets.numel(), entropy)
        if self.type == torch.bfloat16 and self.targets.numel():
            _run("log_probs_product", *self._product(slice(None)), *found.places())
            return found
        for rows in self.chunks():
            logits = self._logits(rows)
            _run("log_probs", *self._at(logits, rows), *found.part(rows).places())
        return found

    def gradients(self, rows: slice, found: _Softmaxes, dlog_probs: Tensor, dentropies: Tensor | None) -> Tensor:
        """(n, V) gradients of the rows' logits in the type of the products, valid until the next call."""
        tops, log_sums, entropies, _ = found.part(rows)
        dentropies = None if dentropies is None else dentropies[rows]
        places = map(_place, (tops, log_sums, entropies, dlog_probs[rows], dentropies))
        if self.type == torch.float32:
            logits = self._logits(rows)
            _run("log_probs_backward", *self._at(logits, rows), *places)
            return logits
        out = self._room(rows)
        _run("log_probs_product_backward", *self._product(rows), *places, out.data_ptr())
        return out

    def inputs(self, rows: slice) -> Tensor:
        """The rows in the type of the products."""
        return self.hidden[rows].to(self.type)

    def _logits(self, rows: slice) -> Tensor:
        return torch.mm(self.inputs(rows), self.weight.t(), out=self._room(rows))

    def _room(self, rows: slice) -> Tensor:
        if not self.buffer.numel():
            self.buffer = empty(min(self.chunk, self.targets.numel()), self.outputs, dtype=self.type)
        return self.buffer[: self.targets[rows].numel()]

    def _at(self, logits: Tensor, rows: slice) -> tuple:
        return logits.data_ptr(), *logits.shape, self.sharp, self.targets[rows].data_ptr()

    def _product(self, rows: slice) -> tuple:
        hidden = self.hidden[rows]
        n, width = hidden.shape
        return (
            hidden.data_ptr(), n, self.weight.data_ptr(), self.outputs, width, self.sharp, self.targets[rows].data_ptr()
        )  # fmt: skip


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden, weight, targets, sharp, entropy, ignore_index, chunk_size):
        rows = kept_rows(targets != ignore_index)
        h, t = (hidden, targets) if rows is None else (hidden[rows], targets[rows])
        found = _Head(h.detach(), weight, t, sharp, chunk_size).softmaxes(entropy)
        if rows is not None:
            found = found.each(lambda value: _spread(value, rows, targets.numel()))
        # No outputs: callers may change theirs in place.
        entropies = None if found.entropies is None else found.entropies.clone()
        ctx.save_for_backward(hidden, weight, targets, found.tops, found.log_sums, entropies)
        ctx.options = sharp, ignore_index, chunk_size
        ctx.set_materialize_grads(False)
        return found.log_probs, found.entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dlog_probs: Tensor | None, dentropies: Tensor | None):
        hidden, weight, targets, *found = ctx.saved_tensors
        sharp, ignore_index, chunk_size = ctx.options
        wanted = ctx.needs_input_grad
        if dlog_probs is None:
            dlog_probs = torch.zeros_like(found[0])
        asked = dlog_probs != 0 if dentropies is None else (dlog_probs != 0) | (dentropies != 0)
        rows = kept_rows((targets != ignore_index) & asked)
        dh = _rows(hidden, rows)
        head = _Head(dh, weight, _rows(targets, rows), sharp, chunk_size)
        known = _Softmaxes(*found) if rows is None else _Softmaxes(*found).part(rows)
        dlog_probs = _rows(dlog_probs.contiguous(), rows)
        dentropies = None if dentropies is None else _rows(dentropies.contiguous(), rows)
        dhidden = torch.empty_like(dh, memory_format=torch.contiguous_format) if wanted[0] else None
        dweight = None
        for part in head.chunks():
            dlogits = head.gradients(part, known, dlog_probs, dentropies)
            if dhidden is not None:
                dhidden[part] = dlogits @ head.weight
            if wanted[1]:
                dweight = _added(dweight, dlogits, head.inputs(part))
        if dhidden is not None and rows is not None:
            dhidden = _spread(dhidden, rows, targets.numel())
        if wanted[1]:
            dweight = torch.zeros_like(weight) if dweight is None else dweight.to(weight.dtype)
        return dhidden, dweight, None, None, None, None, None


def _run(name: str, *arguments: Any) -> None:
    if not run(name, *arguments):
        raise MemoryError("log_probs: no memory for the logits of a few tokens")


def _added(total: Tensor | None, dlogits: Tensor, hidden: Tensor) -> Tensor:
    """total + dlogits^T hidden in float32, (V, D), in place."""
    if dlogits.dtype == torch.float32:
        return torch.mm(dlogits.t(), hidden) if total is None else total.addmm_(dlogits.t(), hidden)
    share = dlogits.t() @ hidden
    return share.float() if total is None else total.add_(share)


def _rows(value: Tensor, rows: Tensor | None) -> Tensor:
    return value if rows is None else value[rows]


def _spread(value: Tensor, rows: Tensor, n: int) -> Tensor:
    """`value`'s rows at their places among n, zero elsewhere."""
    return value.new_zeros(n, *value.shape[1:]).index_copy_(0, rows, value)


def _place(value: Tensor | None) -> int | None:
    return None if value is None else value.data_ptr()


def _case(g: torch.Generator, dtype: torch.dtype) -> tuple:
    targets = torch.randint(0, 71, (35,), generator=g, device="cpu").index_fill_(0, integers([2, 5]), -100)
    return normal(g, dtype, 35, 37), normal(g, dtype, 71, 37), targets, 0.7, True


KERNELS = {
    "log_probs": Kernel(log_probs, "the softmax between its products, and bfloat16 logits", _case, True),
}
