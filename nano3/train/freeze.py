"""Weights that stay as they are while the rest trains (`train.freeze`)."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from nano3.config.errors import UserError
from nano3.model.hf.names import is_stacked, published_name
from nano3.model.lm import LM

SUGGESTED = 3
"""Most names that an error about a pattern names."""


def frozen_names(model: LM, patterns: Sequence[str]) -> list[str]:
    """nano3's names of the parameters of `model` that match one of `patterns`.

    Args:
        model: the model; its weights may be on the meta device.
        patterns: as in the shell (`*`, `?`, `[abc]`), for the whole name: nano3's (blocks.1.mixer.gate.weight) or the
            published one (backbone.layers.1.mixer.gate.weight).

    Raises:
        UserError: a pattern matches no parameter, or some experts of a block but not all: they are one tensor.
    """
    names = {name: _published(name, parameter.shape[0]) for name, parameter in model.named_parameters()}
    found: dict[str, None] = {}
    for pattern in patterns:
        matched = [name for name, published in names.items() if _matches(pattern, name, published)]
        if not matched:
            raise UserError(
                f"train.freeze: no weight matches {pattern!r}; the nearest names are {_nearest(pattern, names)}"
            )
        found |= dict.fromkeys(matched)
    return [name for name in names if name in found]


def freeze(model: LM, patterns: Sequence[str]) -> None:
    """Exclude the parameters that match `patterns` from training: no gradients, no moments, no decay. What does not
    require gradients already, such as quantized weights, stays so.

    Raises:
        UserError: as `frozen_names`, or nothing is left to train.
    """
    frozen = set(frozen_names(model, patterns))
    left = [name for name, parameter in model.named_parameters() if parameter.requires_grad and name not in frozen]
    if not left:
        raise UserError("train.freeze matches every weight that can be trained: nothing is left to train")
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)


def _published(name: str, n_experts: int) -> list[str]:
    if is_stacked(name):
        return [published_name(name, expert) for expert in range(n_experts)]
    return [published_name(name)]


def _matches(pattern: str, name: str, published: Sequence[str]) -> bool:
    hits = sum(fnmatchcase(other, pattern) for other in published)
    if fnmatchcase(name, pattern) or hits == len(published):
        return True
    if hits:
        raise UserError(
            f"train.freeze: {pattern!r} matches {hits} of the {len(published)} experts of {name}, which are one "
            "tensor: freeze all of them or none"
        )
    return False


def _nearest(pattern: str, names: Sequence[str] | dict[str, list[str]]) -> str:
    bare = pattern.replace("*", "")
    # The ends of names repeat from block to block: one name stands for each.
    ends = {name.partition(".mixer.")[2] or name: name for name in reversed(list(names))}
    near = difflib.get_close_matches(bare, [*ends, *names], n=SUGGESTED, cutoff=0.0)
    return ", ".join(dict.fromkeys(ends.get(name, name) for name in near))
