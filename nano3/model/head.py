"""Log-probabilities from the output projection, without ever holding all logits.

A plain projection goes through one fused op; any other module (an adapter, a quantized or a hooked one) is called, a
few tokens at a time, and its logits are made again in the backward pass. What it returns is taken as it comes: logits
of a called bfloat16 head are rounded to bfloat16, and the log-probabilities with them, by up to 0.4 % of the logit. A
quantized one computes float32 logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, overload

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nano3 import kernels
from nano3.kernels.common import LEAST_LOG_PROB
from nano3.kernels.host_copies import known, places
from nano3.model.layers import bare_weight

IGNORED = -100
"""Target of a token that has none."""
NARROW_ROWS = 64
"""Rows of a float32 product with a bfloat16 weight on CPUs; more would have the whole weight widened first."""
CHUNK = 256
"""Tokens whose logits a called head makes at a time: 134 MB in float32 at the report's vocabulary of 131,072."""


def logits(head: nn.Module, hidden: Tensor) -> Tensor:
    """Logits in float32 for hidden of any narrower type, those whose softmax `log_probs` takes; without gradients.

    Args:
        head: (..., D) -> (..., V).
        hidden: (S, D).

    Returns:
        (S, V) float32 (float64 for float64 hidden), rounded before where the head is called for them (see above).
    """
    weight, wide = bare_weight(head), torch.promote_types(hidden.dtype, torch.float32)
    if not isinstance(weight, Tensor):
        return _call(head, hidden).to(wide)
    if hidden.dtype == wide:
        return kernels.linear(hidden, weight)
    weight = weight.to(hidden.dtype)
    if hidden.is_cuda:
        return torch.mm(hidden, weight.t(), out_dtype=wide)
    parts = [kernels.linear(rows, weight) for rows in hidden.to(wide).split(NARROW_ROWS)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def nll_sum(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """Sum of -log softmax(head(hidden))[target], a differentiable float32 scalar (float64 for float64 hidden).

    Args:
        head: (..., D) -> (..., V).
        hidden: (..., D).
        targets: as `hidden` without D, int64; -100 counts nothing.
    """
    hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.flatten()
    if isinstance(weight := bare_weight(head), Tensor):
        return kernels.linear_cross_entropy(hidden, weight, targets)
    return -_called_where_kept(head, hidden, targets, 1.0, False, None)[1].sum()


@overload
def log_probs(
    head: nn.Module,
    hidden: Tensor,
    targets: Tensor,
    temperature: float = ...,
    entropy: Literal[False] = ...,
    ids_limit: int | None = ...,
) -> Tensor:
    """Log-probabilities alone."""
    ...


@overload
def log_probs(
    head: nn.Module,
    hidden: Tensor,
    targets: Tensor,
    temperature: float = ...,
    *,
    entropy: Literal[True],
    ids_limit: int | None = ...,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies."""
    ...


@overload
def log_probs(
    head: nn.Module,
    hidden: Tensor,
    targets: Tensor,
    temperature: float = ...,
    entropy: bool = ...,
    ids_limit: int | None = ...,
) -> Tensor | tuple[Tensor, Tensor]:
    """Either, where only the call decides."""
    ...


def log_probs(
    head: nn.Module,
    hidden: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    entropy: bool = False,
    ids_limit: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """log softmax(head(hidden) / temperature)[target] of each token, differentiable, float32.

    Args:
        head: (..., D) -> (..., V).
        hidden: (..., D).
        targets: as `hidden` without D, int64; tokens with -100 get 0.
        temperature: above 0.
        entropy: also return the entropy of each token's distribution, differentiable too.
        ids_limit: the distribution is over the ids below it, as that of an engine is whose tokenizer has fewer ids than
            the model (GenerationEngine.ids_limit); None: over all.

    Returns:
        As `targets`; with `entropy` two of them.

    Raises:
        ValueError: the temperature is not above 0, or a target is not below `ids_limit`.
    """
    rows, flat = hidden.reshape(-1, hidden.shape[-1]), targets.flatten()
    if isinstance(weight := bare_weight(head), Tensor):
        if ids_limit is not None and ids_limit < len(weight):
            _check_drawable(flat, ids_limit)
            weight = weight[:ids_limit]
        if not entropy:
            return kernels.log_probs(rows, weight, flat, temperature).view_as(targets)
        found, entropies = kernels.log_probs(rows, weight, flat, temperature, entropy=True)
    else:
        kept, *parts = _called_where_kept(head, rows, flat, temperature, entropy, ids_limit)
        found, entropies = (part.new_zeros(flat.shape).index_copy(0, kept, part) for part in parts)
    return (found.view_as(targets), entropies.view_as(targets)) if entropy else found.view_as(targets)


def _check_drawable(targets: Tensor, ids_limit: int) -> None:
    host = known(targets)
    targets = targets if host is None else host
    beyond = targets[targets >= ids_limit]
    if beyond.numel():
        raise ValueError(f"log_probs: target {int(beyond[0])} is not below ids_limit, {ids_limit}: it cannot be drawn")


def _called_where_kept(
    head: nn.Module, hidden: Tensor, targets: Tensor, temperature: float, entropy: bool, ids_limit: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Of (S, D) and (S,): which rows have a target, and their log-probabilities and entropies."""
    if not temperature > 0:
        raise ValueError(f"log_probs: temperature is {temperature}; it must be above 0")
    if ids_limit is not None:
        _check_drawable(targets, ids_limit)
    rows = places(targets, lambda ids: ids != IGNORED)
    found, entropies = zip(*_called(head, hidden[rows], targets[rows], temperature, entropy, ids_limit), strict=True)
    return rows, torch.cat(found), torch.cat(entropies)


def _called(
    head: nn.Module, hidden: Tensor, targets: Tensor, temperature: float, entropy: bool, ids_limit: int | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Of (S, D) and (S,): log-probabilities and entropies of one chunk after the other, at least one."""
    for start in range(0, max(1, len(targets)), CHUNK):
        part = slice(start, start + CHUNK)
        inputs = head, hidden[part], targets[part], temperature, entropy, ids_limit
        yield checkpoint(_log_probs, *inputs, use_reentrant=False)  # pyright: ignore


def _log_probs(
    head: nn.Module, hidden: Tensor, targets: Tensor, temperature: float, entropy: bool, ids_limit: int | None
) -> tuple[Tensor, Tensor]:
    """Of one chunk; entropies are 0 where nobody wants them."""
    logits = _call(head, hidden)[:, :ids_limit]
    wide = torch.promote_types(logits.dtype, torch.float32)
    all_log_probs = torch.log_softmax(logits.to(wide) / temperature, -1)
    chosen = all_log_probs.gather(1, targets.unsqueeze(1)).squeeze(1)
    if not entropy:
        return chosen, torch.zeros_like(chosen)
    return chosen, -(all_log_probs.exp() * all_log_probs.clamp_min(LEAST_LOG_PROB)).sum(-1)


def _call(head: nn.Module, hidden: Tensor) -> Tensor:
    """The head's logits; of a quantized one, whose products are float32 in any case, without rounding them."""
    if isinstance(bare_weight(head), kernels.Scaled):
        hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    return head(hidden)
