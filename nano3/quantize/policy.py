"""Which matrices of a model become FP8: the report's selection, its ablation axes, and rules of one's own (section 4).

Everything follows from the pattern of the blocks, so no weights are needed to tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from nano3.config.errors import UserError
from nano3.config.model import ATTENTION, MAMBA, MLP, MOE, ModelConfig
from nano3.config.typed import check_table, nearest
from nano3.reading import read_toml

FP8, BF16 = "fp8", "bf16"
HEAD, EMBEDDINGS = "lm_head", "backbone.embeddings"
EDGE_BLOCKS = 2
"""Blocks at either end that `edges` is about."""


@dataclass(frozen=True)
class Policy:
    """The report's selection by default: attention, and each Mamba-2 block directly before it, stay as they are."""

    attention: Literal["fp8", "bf16"] = "bf16"
    """q, k, v and o of the attention blocks."""
    mamba: Literal["fp8", "mixed", "bf16"] = "mixed"
    """in and out projections of the Mamba-2 blocks; mixed: bf16 in those directly before an attention block."""
    kv: Literal["fp8", "bf16"] = "fp8"
    """Keys and values in the cache, with a scale a block."""
    edges: Literal["fp8", "bf16"] = "fp8"
    """bf16: the first two and last two blocks stay as they are, whatever is in them."""
    rules: dict[str, Literal["fp8", "bf16"]] = field(default_factory=dict)
    """Modules by published name with wildcards, the later rule wins: `"backbone.layers.4.mixer.*" = "bf16"`."""

    def __str__(self) -> str:
        axes = ", ".join(f"{f.name} {getattr(self, f.name)}" for f in fields(self) if f.name != "rules")
        name = next((f"{name}: " for name, policy in NAMED.items() if policy == self), "")
        return name + axes + (f", {len(self.rules)} rules" if self.rules else "")


NAMED = {"selective": Policy(), "everything": Policy(attention="fp8", mamba="fp8")}
"""Policies with a name; lm_head, embeddings, routers and convolutions stay as they are in both."""
AXES = [f.name for f in fields(Policy) if f.name != "rules"]


@dataclass(frozen=True)
class Matrix:
    """A projection; those of all experts of a block are one."""

    name: str
    """Published name of the module; of experts without their number."""
    block: int
    """-1: the output projection."""
    kind: str
    """What the axes and tables call it: attention, mamba, experts, shared expert, mlp, head."""
    shape: tuple[int, int]
    """(out, in), of one expert."""
    experts: int = 0
    """0: no experts."""

    @property
    def modules(self) -> list[str]:
        """Published names of the modules: one, or one an expert."""
        if not self.experts:
            return [self.name]
        stem, projection = self.name.rsplit(".", 1)
        return [f"{stem}.{expert}.{projection}" for expert in range(self.experts)]

    @property
    def count(self) -> int:
        """Modules that it stands for."""
        return self.experts or 1

    @property
    def numbers(self) -> int:
        """Weights in it."""
        return self.count * self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class Selection:
    """What a policy comes to for one model."""

    cfg: ModelConfig
    matrices: tuple[Matrix, ...]
    """All that could be quantized."""
    chosen: frozenset[str]
    """Names of those that are."""
    cached: tuple[int, ...]
    """Attention blocks whose keys and values get a scale."""

    @property
    def modules(self) -> list[str]:
        """Published names of the FP8 modules."""
        return [name for matrix in self.matrices if matrix.name in self.chosen for name in matrix.modules]

    @property
    def excluded(self) -> list[str]:
        """Published names of the modules that stay as they are, embeddings and convolutions among them. (Norms,
        A_log, D and dt_bias are no modules with a matrix; routers stay in float32 under any policy.)"""
        left = [name for matrix in self.matrices if matrix.name not in self.chosen for name in matrix.modules]
        convolutions = [f"backbone.layers.{i}.mixer.conv1d" for i in self.cfg.blocks(MAMBA)]
        return [EMBEDDINGS, *left, *convolutions]

    @property
    def nothing(self) -> bool:
        """Whether the folder would be as it was."""
        return not self.chosen and not self.cached


def read_policy(given: Sequence[str]) -> Policy:
    """The policy of `--policy` options, each a name, `axis=value` or a TOML file; later ones win.

    Raises:
        UserError: no such name, axis, value or file.
    """
    policy = Policy()
    for text in given:
        axis, equals, value = text.partition("=")
        if text in NAMED:
            policy = NAMED[text]
        elif equals and not text.endswith(".toml"):
            policy = _with(policy, {axis.strip(): value.strip()}, "--policy")
        elif text.endswith(".toml") or Path(text).is_file():
            policy = _with(policy, _table(Path(text)), text)
        else:
            known = ", ".join([*NAMED, *(f"{axis}=..." for axis in AXES)])
            raise UserError(f"--policy {text}: no such policy{_meant(text, NAMED)}; use {known} or a TOML file")
    return policy


def select(cfg: ModelConfig, policy: Policy) -> Selection:
    """What becomes FP8 in a model of these sizes.

    Raises:
        UserError: a rule that fits no module, one that cannot be quantized, or only some of a block's experts.
    """
    matrices = tuple(list_matrices(cfg))
    formats = {matrix.name: _format(cfg, policy, matrix) for matrix in matrices}
    for pattern, chosen in policy.rules.items():
        for matrix in _matching(cfg, pattern, matrices):
            formats[matrix.name] = chosen
    cached = cfg.blocks(ATTENTION) if policy.kv == FP8 else []
    return Selection(cfg, matrices, frozenset(n for n, chosen in formats.items() if chosen == FP8), tuple(cached))


def list_matrices(cfg: ModelConfig) -> Iterator[Matrix]:
    """Every projection of the model in the order of its blocks, the output projection last."""
    for i, symbol in enumerate(cfg.pattern):
        for leaf, kind, shape, experts in _of_block(cfg, symbol):
            yield Matrix(f"backbone.layers.{i}.mixer.{leaf}", i, kind, shape, experts)
    yield Matrix(HEAD, -1, "head", (cfg.vocab_size, cfg.d_model))


def _of_block(cfg: ModelConfig, symbol: str) -> Iterator[tuple[str, str, tuple[int, int], int]]:
    """(name, kind, (out, in), experts) of the projections of a block."""
    width = cfg.d_model
    if symbol == MAMBA:
        yield "in_proj", "mamba", (cfg.d_in_proj, width), 0
        yield "out_proj", "mamba", (width, cfg.d_inner), 0
    elif symbol == ATTENTION:
        for letter, heads in (("q", cfg.n_heads), ("k", cfg.n_kv_heads), ("v", cfg.n_kv_heads)):
            yield f"{letter}_proj", "attention", (heads * cfg.head_dim, width), 0
        yield "o_proj", "attention", (width, cfg.n_heads * cfg.head_dim), 0
    elif symbol == MOE:
        yield from _two("experts.", "experts", cfg.d_expert, width, cfg.n_experts)
        if cfg.d_shared:
            yield from _two("shared_experts.", "shared expert", cfg.d_shared, width)
    elif symbol == MLP:
        yield from _two("", "mlp", cfg.d_ff, width)


def _two(stem: str, kind: str, hidden: int, width: int, experts: int = 0) -> Iterator[Any]:
    yield f"{stem}up_proj", kind, (hidden, width), experts
    yield f"{stem}down_proj", kind, (width, hidden), experts


def _format(cfg: ModelConfig, policy: Policy, matrix: Matrix) -> str:
    """What the axes make of a matrix."""
    if matrix.kind == "head":
        return BF16
    if policy.edges == BF16 and not EDGE_BLOCKS <= matrix.block < cfg.n_blocks - EDGE_BLOCKS:
        return BF16
    if matrix.kind == "attention":
        return policy.attention
    if matrix.kind == "mamba":
        before_attention = cfg.pattern[matrix.block + 1 : matrix.block + 2] == ATTENTION
        return BF16 if policy.mamba == BF16 or (policy.mamba == "mixed" and before_attention) else FP8
    return FP8


def _matching(cfg: ModelConfig, pattern: str, matrices: Sequence[Matrix]) -> list[Matrix]:
    """Those whose modules a rule's name fits."""
    found = []
    for matrix in matrices:
        fitting = sum(fnmatchcase(name, pattern) for name in matrix.modules)
        if fitting not in (0, matrix.count):
            raise UserError(
                f"policy: rule {pattern!r} fits {fitting} of the {matrix.count} experts of {matrix.name}, which share "
                "one format: end the name of the experts with *"
            )
        found += [matrix] if fitting else []
    if not found:
        raise UserError(f"policy: rule {pattern!r} fits no module{_why_not(cfg, pattern, matrices)}")
    return found


def _why_not(cfg: ModelConfig, pattern: str, matrices: Sequence[Matrix]) -> str:
    kept = {EMBEDDINGS: "embeddings are looked up, not multiplied"}
    kept |= {f"backbone.layers.{i}.mixer.conv1d": "convolutions are never quantized" for i in cfg.blocks(MAMBA)}
    kept |= {f"backbone.layers.{i}.mixer.gate": "routers are never quantized" for i in cfg.blocks(MOE)}
    for name, reason in kept.items():
        if fnmatchcase(name, pattern):
            return f" that can be FP8: {reason}"
    return _meant(pattern, [matrix.modules[0] for matrix in matrices])


def _meant(name: str, valid: Iterable[str]) -> str:
    close = nearest(name, valid)
    return f"; did you mean {close!r}?" if close else ""


def _with(policy: Policy, table: dict[str, Any], where: str) -> Policy:
    return replace(policy, **check_table(table, Policy, where))


def _table(file: Path) -> dict[str, Any]:
    """A policy file's settings; `base` names the policy that they change."""
    try:
        table = read_toml(file)
    except OSError as error:
        raise UserError(f"--policy {file}: cannot be read ({error.strerror})") from None
    base = table.pop("base", None)
    if base is not None and base not in NAMED:
        raise UserError(f"{file}: base is {base!r}; use {' or '.join(NAMED)}")
    named = NAMED[base] if base else None
    return ({axis: getattr(named, axis) for axis in AXES} if named else {}) | table
