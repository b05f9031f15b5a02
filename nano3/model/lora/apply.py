"""Adapters into a model: which projections get one, and what of the model trains then."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from nano3.config.errors import UserError
from nano3.config.lora import LoraConfig
from nano3.model.layers import Linear
from nano3.model.lm import LM
from nano3.model.lora.modules import PROJECTIONS, LoraExperts, LoraLinear, init_adapter
from nano3.model.lora.targets import HEAD, matches
from nano3.model.moe import Experts

SUGGESTED = 3
"""Most names that an error about a pattern names."""


@dataclass(frozen=True)
class LoraReport:
    """What was given adapters."""

    names: list[str]
    """nano3's names of the projections."""
    rank: int
    alpha: float
    trained: int
    """Numbers in the adapters."""
    total: int
    """Numbers in the model, adapters included."""

    def lines(self) -> list[str]:
        """For the user: the matched projections, a line a kind, and the share of what trains."""
        blocks: dict[str, list[str]] = {}
        for name in self.names:
            block, _, kind = name.removeprefix("blocks.").partition(".mixer.")
            blocks.setdefault(kind or name, []).append(block if kind else "")
        width = max(map(len, blocks))
        kinds = [f"  {kind:<{width}}  blocks {', '.join(numbers)}" for kind, numbers in blocks.items() if any(numbers)]
        return [
            f"LoRA of rank {self.rank}, alpha {self.alpha:g}, on {len(self.names)} projections:",
            *kinds,
            *(f"  {kind}" for kind, numbers in blocks.items() if not any(numbers)),
            f"{self.trained:,} of {self.total:,} parameters train ({self.trained / self.total:.2%})",
        ]


def apply_lora(model: LM, cfg: LoraConfig, seed: int = 0) -> LoraReport:
    """Give the projections of `model` that cfg.targets name an adapter each; nothing else trains from then on.

    In place. On the meta device the adapters are left empty: fill them with `init_lora` when the model has weights.

    Args:
        model: without adapters; its weights may be quantized, and may be on the meta device.
        cfg: rank at least 1.
        seed: of the adapters' initial values. The model computes what it did before.

    Raises:
        UserError: a pattern matches no projection, or the model has adapters already.
    """
    if cfg.rank < 1:
        raise ValueError(f"lora.rank is {cfg.rank}; adapters have a rank of at least 1")
    if has_adapters(model):
        raise UserError("the model has adapters already: merge them first")
    names = matched(model, cfg.targets)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if cfg.base_dtype != "auto":
        compute_dtype = model.compute_dtype
        model.to_dtype(getattr(torch, cfg.base_dtype), compute_dtype)
    for owner, projections in _by_module(model, names).items():
        _replace(model, owner, projections, cfg)
    if not model.embeddings.weight.is_meta:
        init_lora(model, seed)
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return LoraReport(names, cfg.rank, cfg.alpha, sum(n for n, trains in sizes if trains), sum(n for n, _ in sizes))


def matched(model: LM, patterns: Sequence[str]) -> list[str]:
    """nano3's names of the projections that `patterns` name, in the model's order; without patterns all but the output
    projection.

    Raises:
        UserError: a pattern names none.
    """
    names = list(projections(model))
    if not patterns:
        return [name for name in names if name != HEAD]
    found: set[str] = set()
    for pattern in patterns:
        hits = [name for name in names if matches(pattern, name)]
        if not hits:
            raise UserError(
                f"lora.targets: no projection matches {pattern!r}; the nearest names are {_nearest(pattern, names)}"
            )
        found |= set(hits)
    return [name for name in names if name in found]


def projections(model: LM) -> Iterator[str]:
    """nano3's names of all that can have an adapter: every Linear, and both matrices of routed experts."""
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            yield name
        elif isinstance(module, Experts):
            yield from (f"{name}.{projection}" for projection in PROJECTIONS)


def adapted(model: nn.Module) -> Iterator[tuple[str, LoraLinear | LoraExperts]]:
    """The modules with adapters, by nano3's names."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear | LoraExperts):
            yield name, module


def has_adapters(model: nn.Module) -> bool:
    """Whether any projection has one."""
    return any(True for _ in adapted(model))


def init_lora(model: nn.Module, seed: int = 0) -> None:
    """Fill all adapters with their initial values, with which the model computes what it does without them.

    Each depends only on `seed` and its name; of sharded ones each rank fills its own part.
    """
    for name, module in adapted(model):
        for adapter in module.adapters():
            init_adapter(adapter, f"{name}.{adapter.name}", seed)


def _by_module(model: LM, names: Sequence[str]) -> dict[str, list[str]]:
    """Module -> the projections in it; a Linear is one itself."""
    modules = dict(model.named_modules())
    found: dict[str, list[str]] = {}
    for name in names:
        owner, projection = (name, "") if name in modules else name.rsplit(".", 1)
        found.setdefault(owner, []).append(projection)
    return found


def _replace(model: LM, name: str, names: list[str], cfg: LoraConfig) -> None:
    base, scale = model.get_submodule(name), cfg.alpha / cfg.rank
    if isinstance(base, Experts):
        new: nn.Module = LoraExperts(base, names, cfg.rank, scale, cfg.dropout)
    else:
        assert isinstance(base, Linear)
        new = LoraLinear(base, cfg.rank, scale, cfg.dropout)
    model.set_submodule(name, new)


def _nearest(pattern: str, names: Sequence[str]) -> str:
    # The ends of names repeat from block to block.
    ends = list(dict.fromkeys(name.partition(".mixer.")[2] or name for name in names))
    near = difflib.get_close_matches(pattern.replace("*", ""), ends, n=SUGGESTED, cutoff=0.0)
    return ", ".join(near)
