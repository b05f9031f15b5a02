"""The arrangement of a run's processes, by the section `parallel` of its settings."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from nano3.config.checks import as_typed
from nano3.config.errors import UserError
from nano3.config.model import ATTENTION, MAMBA, MOE, ModelConfig
from nano3.config.sections.parallel import ParallelConfig

CONTEXT = "context"
"""The axis of the processes that share out each sequence."""
TENSOR = "tensor"
"""The axis of the processes that divide the heads of each mixer; the innermost one."""
PIPELINE = "pipeline"
"""The axis of the processes that hold different blocks; the outermost one."""
EXPERT_AXES = ("replicate", "shard", "expert")
"""Axes of the processes as the experts' weights see them."""
TRAVEL = ("gather_dtype", "reduce_dtype", "reshard_after_forward", "offload")
"""Settings of how shards are kept and travel."""
SLICES_EACH = 2
"""Slices of a sequence that one process holds: an early and a late one, since late tokens see more keys."""


@dataclass(frozen=True)
class Layout:
    """Degrees of each kind of parallelism; process = ((replica * shard + s) * context + c) * tensor + t.

    Of the `shard * context * tensor` processes of a replica, which hold the model's weights once, each run of `expert`
    holds the experts once: neighbours, so that the exchange of tokens stays inside a machine where it can.
    """

    replicate: int = 1
    """Replicas: groups of processes that hold all weights."""
    shard: int = 1
    """Processes of a replica that read different sequences."""
    context: int = 1
    """Processes that share out each sequence."""
    expert: int = 1
    """Processes among which the experts of a block are divided."""
    pipeline: int = 1
    """Groups of processes that each hold other blocks."""
    tensor: int = 1
    """Processes that divide the heads of each mixer; each has a part of the tokens."""

    @property
    def replica(self) -> int:
        """Processes that hold the weights of a stage once."""
        return self.shard * self.context * self.tensor

    @property
    def stage(self) -> int:
        """Processes that hold the same blocks."""
        return self.replicate * self.replica

    @property
    def size(self) -> int:
        """All processes."""
        return self.pipeline * self.stage

    @property
    def expert_shape(self) -> tuple[int, int, int]:
        """Number of processes along EXPERT_AXES."""
        return self.replicate, self.replica // self.expert, self.expert

    @property
    def n_slices(self) -> int:
        """Slices of one sequence; 1: it stays whole."""
        return SLICES_EACH * self.context if self.context > 1 else 1


def axes_of(cfg: ParallelConfig) -> dict[str, int]:
    """Number of processes along each axis beside that of the data, for nano3.train.world.init_world."""
    return {name: n for name in (PIPELINE, CONTEXT, TENSOR) if (n := getattr(cfg, name)) > 1}


def layout_of(cfg: ParallelConfig, model: ModelConfig, size: int) -> Layout:
    """The layout of `size` processes that train `model`.

    Raises:
        UserError: they cannot be arranged so; the line names the setting and the nearest value that is possible.
    """
    _check_copies(cfg)
    _check_pipeline(cfg, model, size)
    own = size // cfg.pipeline
    check_heads(cfg, model, own, size)
    _check_groups(cfg, model, own, size)
    shard = own // (cfg.replicate * cfg.context * cfg.tensor)
    layout = Layout(cfg.replicate, shard, cfg.context, cfg.expert, cfg.pipeline, cfg.tensor)
    if cfg.shard and cfg.shard != layout.shard:
        reason = f"{_processes(own)}{_of_stage(cfg)} leave another number"
        raise _wrong("shard", cfg, reason, [layout.shard if cfg.fsdp else 0], size)
    _check_experts(cfg, model, layout)
    return layout


def check_lengths(cfg: ParallelConfig, model: ModelConfig, lengths: Iterable[int]) -> None:
    """Refuse sequences that do not divide into slices.

    Args:
        cfg: the settings.
        model: whose convolution sees the end of the slice before.
        lengths: tokens of the sequences.

    Raises:
        UserError: which, and the nearest number of processes among which they can be shared out.
    """
    if cfg.context == cfg.tensor == 1:
        return
    shortest = model.d_conv - 1 if model.blocks(MAMBA) else 1
    slices = SLICES_EACH * cfg.context if cfg.context > 1 else 1
    for length in lengths:
        if cfg.context > 1 and (length % slices or length // slices < shortest):
            most = length // (SLICES_EACH * shortest)
            fitting = [n for n in range(1, most + 1) if length % (SLICES_EACH * n) == 0]
            reason = f"sequences of {length} tokens do not divide into {slices} slices of at least {shortest}"
            raise _wrong("context", cfg, reason, [1, *fitting])
        if length % (slices * cfg.tensor):
            fitting = [n for n in _divisors(length // slices) if divides_heads(model, n)]
            reason = f"sequences of {length} tokens do not divide into {slices} x {cfg.tensor} equal parts"
            raise _wrong("tensor", cfg, reason, fitting)


def _check_copies(cfg: ParallelConfig) -> None:
    """Refuse settings of shards where there are none."""
    if cfg.fsdp:
        return
    of_shards = {name: getattr(ParallelConfig(), name) for name in (*EXPERT_AXES, *TRAVEL)}
    for name, default in of_shards.items():
        asked = getattr(cfg, name)
        if asked > 1 if name in EXPERT_AXES else asked != default:
            raise UserError(
                f"parallel.{name} is {as_typed(asked)} with parallel.fsdp = false, where every process holds all "
                f"weights: --set parallel.fsdp=true, or --set parallel.{name}={as_typed(default)}"
            )


def _check_pipeline(cfg: ParallelConfig, model: ModelConfig, size: int) -> None:
    """Refuse a number of stages that the processes or the blocks do not divide into."""
    possible = [n for n in _divisors(size) if n * cfg.stages_per_rank <= model.n_blocks]
    if cfg.pipeline not in possible:
        reason = f"{_processes(size)} and {model.n_blocks} blocks do not divide into stages so"
        others = cfg.replicate * cfg.context * cfg.tensor
        raise _wrong(PIPELINE, cfg, reason, [n for n in possible if size // n % others == 0] or possible or [1], size)
    check_whole(cfg)


def check_whole(cfg: ParallelConfig) -> None:
    """Raise UserError for settings of stages where the model stays whole."""
    if cfg.pipeline == 1 and (cfg.stages_per_rank > 1 or cfg.cuts):
        name, default = ("stages_per_rank", 1) if cfg.stages_per_rank > 1 else ("cuts", [])
        raise UserError(
            f"parallel.{name} is {getattr(cfg, name)} without a pipeline: --set parallel.pipeline=N, or "
            f"--set parallel.{name}={default}"
        )


def divides_heads(model: ModelConfig, n: int) -> bool:
    """Whether `n` processes can divide the heads of every mixer. Heads of keys and groups of B and C that are fewer are
    the same ones on several processes."""
    kinds = [(model.n_heads, model.n_kv_heads)] if model.blocks(ATTENTION) else []
    kinds += [(model.mamba_n_heads, model.n_groups)] if model.blocks(MAMBA) else []
    if not kinds:
        return n == 1
    return all(heads % n == 0 and (shared % n == 0 or n % shared == 0) for heads, shared in kinds)


def check_heads(cfg: ParallelConfig, model: ModelConfig, own: int = 0, size: int = 0) -> None:
    """Refuse a number of processes that the heads of a mixer do not divide among, of `own` in a stage and `size` in
    all; 0: of as many as there may be.

    Raises:
        UserError: with the nearest number that is possible.
    """
    if divides_heads(model, cfg.tensor):
        return
    kinds = [f"{model.n_heads} heads with {model.n_kv_heads} of keys"] if model.blocks(ATTENTION) else []
    kinds += [f"{model.mamba_n_heads} Mamba-2 heads in {model.n_groups} groups"] if model.blocks(MAMBA) else []
    reason = f"{' and '.join(kinds)} cannot be divided so" if kinds else "the model has no heads"
    some = _divisors(own) if own else range(1, max(model.n_heads, model.mamba_n_heads) + 1)
    raise _wrong(TENSOR, cfg, reason, [n for n in some if divides_heads(model, n)], size)


def _check_groups(cfg: ParallelConfig, model: ModelConfig, own: int, size: int) -> None:
    """Refuse groups into which the processes of a stage, `own` of `size`, do not divide."""
    names, left = ("replicate", CONTEXT, TENSOR), own
    for i, name in enumerate(names):
        if left % getattr(cfg, name) == 0:
            left //= getattr(cfg, name)
            continue
        # The ones after it stay as they are where the number of processes allows it at all.
        after = math.gcd(left, math.prod(getattr(cfg, other) for other in names[i + 1 :]))
        possible = [n for n in _divisors(left // after) if name != TENSOR or divides_heads(model, n)]
        reason = f"{_processes(own)}{_of_stage(cfg)} cannot be divided into so many groups"
        raise _wrong(name, cfg, reason, possible, size)


def _of_stage(cfg: ParallelConfig) -> str:
    return " of a stage" if cfg.pipeline > 1 else ""


def _check_experts(cfg: ParallelConfig, model: ModelConfig, layout: Layout) -> None:
    if cfg.expert == 1:
        return
    if not model.blocks(MOE):
        raise _wrong("expert", cfg, "the model has no experts", [1], layout.size)
    possible = [n for n in _divisors(math.gcd(model.n_experts, layout.replica)) if _divides(model, layout.replica // n)]
    if cfg.expert in possible:
        return
    whose = f"{_processes(layout.replica)} of a replica" if layout.replicate > 1 else _processes(layout.stage)
    reason = f"{model.n_experts} experts of {model.d_expert} x {model.d_model} cannot be divided among {whose} so"
    raise _wrong("expert", cfg, reason, possible or [1], layout.size)


def _divides(model: ModelConfig, shards: int) -> bool:
    """Whether an expert's matrices divide into so many equal parts."""
    return any(size % shards == 0 for size in (model.d_expert, model.d_model))


def _divisors(n: int) -> list[int]:
    return [k for k in range(1, n + 1) if n % k == 0]


def _wrong(name: str, cfg: ParallelConfig, reason: str, possible: Iterable[int], size: int = 0) -> UserError:
    asked = getattr(cfg, name)
    nearest = min(possible, key=lambda n: (abs(n - asked), n))
    start = ", or start more with torchrun" if size == 1 else ""
    return UserError(f"parallel.{name} is {asked}: {reason}; the nearest is --set parallel.{name}={nearest}{start}")


def _processes(n: int) -> str:
    return "one process" if n == 1 else f"{n} processes"
