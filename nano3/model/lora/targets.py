"""Which projections `lora.targets` names, and how large their adapters are; in plain Python, without torch."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import NamedTuple

from nano3.config.lora import LoraConfig
from nano3.config.model import ATTENTION, MAMBA, MLP, MOE, ModelConfig

HEAD = "lm_head"
"""A projection that gets no adapter unless it is named."""


class Projection(NamedTuple):
    """A matrix, or the stacked ones of all experts."""

    name: str
    n_in: int
    n_out: int
    copies: int = 1


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern of lora.targets means nano3's name of a projection: by it, the published one, or their ends."""
    published = "backbone.layers." + name.removeprefix("blocks.") if name != HEAD else name
    return any(fnmatchcase(n, p) for n in (name, published) for p in (pattern, f"*.{pattern}"))


def is_target(name: str, lora: LoraConfig) -> bool:
    """Whether a projection gets an adapter."""
    return any(matches(pattern, name) for pattern in lora.targets) if lora.targets else name != HEAD


def adapter_parameters(cfg: ModelConfig, lora: LoraConfig) -> int:
    """Numbers in all adapters."""
    sizes = (p.copies * (p.n_in + p.n_out) for p in projections(cfg) if is_target(p.name, lora))
    return lora.rank * sum(sizes)


def expert_targets(cfg: ModelConfig, lora: LoraConfig) -> list[str]:
    """Names of the routed experts' projections that get adapters."""
    if not lora.rank:
        return []
    return [p.name for p in projections(cfg) if ".experts." in p.name and is_target(p.name, lora)]


def head_targets(cfg: ModelConfig, lora: LoraConfig) -> list[str]:
    """Names of the projections of attention and Mamba-2 blocks that get adapters."""
    if not lora.rank:
        return []
    divided = {f"blocks.{i}.mixer." for symbol in (ATTENTION, MAMBA) for i in cfg.blocks(symbol)}
    return [p.name for p in projections(cfg) if p.name.rpartition(".")[0] + "." in divided and is_target(p.name, lora)]


def projections(cfg: ModelConfig) -> Iterator[Projection]:
    """All that can have an adapter, in the model's order."""
    for i, symbol in enumerate(cfg.pattern):
        yield from (each._replace(name=f"blocks.{i}.mixer.{each.name}") for each in _MIXERS[symbol](cfg))
    yield Projection(HEAD, cfg.d_model, cfg.vocab_size)


def _mamba(cfg: ModelConfig) -> list[Projection]:
    return [Projection("in_proj", cfg.d_model, cfg.d_in_proj), Projection("out_proj", cfg.d_inner, cfg.d_model)]


def _attention(cfg: ModelConfig) -> list[Projection]:
    D, queries, keys = cfg.d_model, cfg.n_heads * cfg.head_dim, cfg.n_kv_heads * cfg.head_dim
    sizes = {"q_proj": (D, queries), "k_proj": (D, keys), "v_proj": (D, keys), "o_proj": (queries, D)}
    return [Projection(name, *size) for name, size in sizes.items()]


def _mlp(cfg: ModelConfig, width: int, prefix: str = "", copies: int = 1) -> list[Projection]:
    D = cfg.d_model
    return [Projection(f"{prefix}up_proj", D, width, copies), Projection(f"{prefix}down_proj", width, D, copies)]


def _moe(cfg: ModelConfig) -> list[Projection]:
    shared = _mlp(cfg, cfg.d_shared, "shared_experts.") if cfg.d_shared else []
    return [*_mlp(cfg, cfg.d_expert, "experts.", cfg.n_experts), *shared]


_MIXERS = {MAMBA: _mamba, ATTENTION: _attention, MLP: lambda cfg: _mlp(cfg, cfg.d_ff), MOE: _moe}
