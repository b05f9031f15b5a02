"""Weights in the type of the activations, made once where they are used many times before they change.

Without that each use casts the weight anew: in every micro-batch, again where a block is computed twice, and in pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor


class _Kept(NamedTuple):
    weight: Tensor
    copies: dict[torch.dtype, Tensor]


_KEPT: dict[tuple[int, int], _Kept] = {}
"""By where a weight lies, since a pass that is computed again gives its backward pass aliases. For all threads, of
which backward passes on GPUs have their own."""


@contextmanager
def kept(weights: Iterable[Tensor]) -> Iterator[None]:
    """Within the block the copies of `weights` that `narrowed` makes are kept, and nobody may change these weights."""
    own = {place: _Kept(weight, {}) for weight in weights if (place := _place(weight)) not in _KEPT}
    _KEPT.update(own)
    try:
        yield
    finally:
        for place in own:
            _KEPT.pop(place, None)


def is_kept(weight: Tensor) -> bool:
    """Whether copies of this weight, or of one of which these are the first rows, are kept for now."""
    return _find(weight) is not None


def narrowed(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight, or the first rows of one, in `dtype`, without gradient."""
    found = None if weight.dtype == dtype else _find(weight)
    if found is None:
        return weight.detach().to(dtype)
    if dtype not in found.copies:
        found.copies[dtype] = found.weight.detach().to(dtype)
    return found.copies[dtype][: len(weight)]


def _place(weight: Tensor) -> tuple[int, int]:
    return weight.untyped_storage()._cdata, int(weight.storage_offset())


def _find(weight: Tensor) -> _Kept | None:
    found = _KEPT.get(_place(weight)) if _KEPT else None
    if found is None or weight.shape[1:] != found.weight.shape[1:] or weight.stride() != found.weight.stride():
        return None
    return found if weight.dtype == found.weight.dtype and len(weight) <= len(found.weight) else None
