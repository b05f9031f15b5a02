"""How many bytes a model's weights take under each policy of `nano3 quantize`, from its sizes alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nano3.config.model import MAMBA, MOE, ModelConfig
from nano3.kernels.integers import GROUP
from nano3.model.count import count_parameters
from nano3.quantize.policy import NAMED, Matrix, list_matrices, select

HALF, FULL = 2, 4
"""Bytes of a bf16 and of a float32 number."""


@dataclass(frozen=True)
class Storage:
    """A model's weights under one policy, as the folder that nano3 writes holds them."""

    policy: str
    title: str
    """The policy for people."""
    folder: float
    """Bytes of all tensors."""
    each: dict[str, float]
    """Bytes of a weight with its share of scales, by kind as in nano3.bench.costs: experts, embeddings, rest."""
    quick: float
    """Weights that act on a token and are multiplied in 8 bits; the output projection is not among them."""
    quick_head: bool
    """Whether the output projection is multiplied in 8 bits."""


def storages(cfg: ModelConfig) -> list[Storage]:
    """bf16, the report's selection, everything in FP8, and integers; 4 bits only where all rows divide into groups."""
    matrices = list(list_matrices(cfg))
    found = [_storage(cfg, "bf16", "bf16", matrices, frozenset(), _fp8, quick=False)]
    for policy, title in (("selective", "selective FP8"), ("everything", "all FP8")):
        found.append(_storage(cfg, policy, title, matrices, select(cfg, NAMED[policy]).chosen, _fp8))
    every = frozenset(matrix.name for matrix in matrices)
    found.append(_storage(cfg, "int8", "int8", matrices, every, _int8))
    if all(matrix.shape[1] % GROUP == 0 for matrix in matrices):
        # Readers of such folders on GPUs multiply in bf16.
        found.append(_storage(cfg, "int4", "int4", matrices, every, _int4, quick=False))
    return found


def _fp8(matrix: Matrix) -> float:
    """A byte a number; one scale of the weight and one of the inputs for each module."""
    return matrix.numbers + 2 * FULL * matrix.count


def _int8(matrix: Matrix) -> float:
    """A byte a number, one float32 scale a row."""
    return matrix.numbers + FULL * matrix.count * matrix.shape[0]


def _int4(matrix: Matrix) -> float:
    """Half a byte a number, one 16-bit scale a group."""
    return matrix.numbers * (0.5 + HALF / GROUP)


def _storage(
    cfg: ModelConfig,
    policy: str,
    title: str,
    matrices: list[Matrix],
    chosen: frozenset[str],
    size: Callable[[Matrix], float],
    quick: bool = True,
) -> Storage:
    numbers, sizes = {"experts": 0.0, "rest": 0.0}, {"experts": 0.0, "rest": 0.0}
    for matrix in matrices:
        kind = "experts" if matrix.experts else "rest"
        numbers[kind] += matrix.numbers
        sizes[kind] += size(matrix) if matrix.name in chosen else HALF * matrix.numbers
    embeddings = cfg.vocab_size * cfg.d_model
    others = count_parameters(cfg).total - embeddings - sum(numbers.values())
    sizes["rest"] += HALF * others + _wide(cfg)
    numbers["rest"] += others
    each = {kind: sizes[kind] / max(1.0, numbers[kind]) for kind in sizes} | {"embeddings": float(HALF)}
    eight = [matrix for matrix in matrices if quick and matrix.name in chosen]
    acting = sum((cfg.top_k if matrix.experts else 1) * matrix.shape[0] * matrix.shape[1]
                 for matrix in eight if matrix.kind != "head")  # fmt: skip
    folder = sum(sizes.values()) + HALF * embeddings
    return Storage(policy, title, folder, each, acting, any(matrix.kind == "head" for matrix in eight))


def _wide(cfg: ModelConfig) -> float:
    """Bytes beyond 2 a number of what stays in float32: routers (their biases are no parameters), A_log, D, dt_bias."""
    routers = len(cfg.blocks(MOE)) * cfg.n_experts * ((FULL - HALF) * cfg.d_model + FULL)
    return routers + len(cfg.blocks(MAMBA)) * 3 * cfg.mamba_n_heads * (FULL - HALF)
