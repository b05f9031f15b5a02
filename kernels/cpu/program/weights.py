"""A model's weights and sizes as the decoding program takes them: matrices are tensors, or data and scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ...scaled import Weight


@dataclass(frozen=True)
class MambaWeights:
    """Of a Mamba-2 block: H heads of width P, N state, G groups, C = H P + 2 G N channels, W taps."""

    norm: Tensor
    in_proj: Weight
    """(H P + C + H, D): z, x, B, C, dt."""
    taps: Tensor
    """(C, W), or (C, 1, W)."""
    bias: Tensor
    A_log: Tensor
    D: Tensor
    dt_bias: Tensor
    out_norm: Tensor
    out_proj: Weight


@dataclass(frozen=True)
class AttentionWeights:
    """Of an attention block."""

    norm: Tensor
    q: Weight
    k: Weight
    v: Weight
    o: Weight


@dataclass(frozen=True)
class ExpertWeights:
    """Of a mixture block: E experts of width F, and perhaps a shared one."""

    norm: Tensor
    router: Tensor
    router_bias: Tensor
    up: Weight
    """(E, F, D)."""
    down: Weight
    """(E, D, F)."""
    shared_up: Weight | None
    shared_down: Weight | None


@dataclass(frozen=True)
class MlpWeights:
    """Of a dense squared-ReLU block."""

    norm: Tensor
    up: Weight
    down: Weight


BlockWeights = MambaWeights | AttentionWeights | ExpertWeights | MlpWeights


@dataclass(frozen=True)
class ProgramSizes:
    """Letters as in `nano3.kernels.ops`; those of kinds of blocks that the model lacks are not looked at."""

    D: int
    V: int
    eps: float
    H: int = 0
    P: int = 0
    N: int = 0
    G: int = 0
    W: int = 0
    kv_heads: int = 0
    query_heads: int = 0
    head_dim: int = 0
    E: int = 0
    K: int = 0
    F: int = 0
    routed_scale: float = 1.0


def of_kinds(sizes: ProgramSizes, kinds: Sequence[type]) -> ProgramSizes:
    """The sizes with 0 for all that only other kinds of blocks have."""
    if MambaWeights not in kinds:
        sizes = replace(sizes, H=0, P=0, N=0, G=0, W=0)
    if AttentionWeights not in kinds:
        sizes = replace(sizes, kv_heads=0, query_heads=0, head_dim=0)
    return sizes if ExpertWeights in kinds else replace(sizes, E=0, K=0, F=0)
