"""The arrangement of a run's processes, by the section `parallel` of its settings."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from nano3.config.checks import as_typed
from nano3.config.errors import UserError
from nano3.config.model import MAMBA, MOE, ModelConfig
from nano3.config.sections.parallel import ParallelConfig

CONTEXT = "context"
"""The axis of the processes that share out each sequence."""
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
    """Degrees of each kind of parallelism; process = (replica * shard + s) * context + c.

    Of the `shard * context` processes of a replica, which hold the model's weights once, each run of `expert` holds the
    experts once: neighbours, so that the exchange of tokens stays inside a machine where it can.
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

    @property
    def replica(self) -> int:
        """Processes that hold the weights of a stage once."""
        return self.shard * self.context

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
    return {name: n for name, n in ((PIPELINE, cfg.pipeline), (CONTEXT, cfg.context)) if n > 1}


def layout_of(cfg: ParallelConfig, model: ModelConfig, size: int) -> Layout:
    """The layout of `size` processes that train `model`.

    Raises:
        UserError: they cannot be arranged so; the line names the setting and the nearest value that is possible.
    """
    _check_copies(cfg)
    _check_pipeline(cfg, model, size)
    own = size // cfg.pipeline
    if own % (cfg.replicate * cfg.context):
        name = "context" if cfg.context > 1 and (cfg.replicate == 1 or own % cfg.replicate == 0) else "replicate"
        # The other one stays as it is where the number of processes allows it at all.
        other = cfg.replicate if name == "context" else math.gcd(own, cfg.context)
        reason = f"{_processes(own)}{_of_stage(cfg)} cannot be divided into so many groups"
        raise _wrong(name, cfg, reason, _divisors(own // other), size)
    layout = Layout(cfg.replicate, own // (cfg.replicate * cfg.context), cfg.context, cfg.expert, cfg.pipeline)
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
    if cfg.context == 1:
        return
    shortest = model.d_conv - 1 if model.blocks(MAMBA) else 1
    slices = SLICES_EACH * cfg.context
    for length in lengths:
        if length % slices or length // slices < shortest:
            most = length // (SLICES_EACH * shortest)
            fitting = [n for n in range(1, most + 1) if length % (SLICES_EACH * n) == 0]
            reason = f"sequences of {length} tokens do not divide into {slices} slices of at least {shortest}"
            raise _wrong("context", cfg, reason, [1, *fitting])


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
        others = cfg.replicate * cfg.context
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
