"""How a run's processes divide the work (section `parallel`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nano3.config.checks import check

SCHEDULES = ("1f1b", "interleaved")
"""Orders of the passes of a pipeline: of one stage a rank, and of several."""


@dataclass(frozen=True)
class ParallelConfig:
    """Parallelism under torchrun: processes = pipeline * replicate * shard * context * tensor; expert divides the last
    three."""

    fsdp: bool = True
    """Shard weights and optimizer over the ranks (FSDP2); off: every rank keeps a full copy."""
    replicate: int = 1
    """Groups of ranks that each hold all weights in shards (HSDP): weights are gathered inside a group."""
    shard: int = 0
    """Ranks of a group that read different sequences; 0: those that there are. Another number is refused."""
    expert: int = 1
    """Ranks among which the experts of a block are divided; tokens travel to their experts."""
    context: int = 1
    """Ranks among which each sequence is divided."""
    tensor: int = 1
    """Ranks among which the heads of Mamba-2 and attention blocks are divided, and the tokens of everything else."""
    pipeline: int = 1
    """Ranks among which the blocks are divided, in stages that micro-batches go through one after the other."""
    schedule: str = "1f1b"
    """Order of the passes of a pipeline: `1f1b`, or `interleaved` with several stages a rank."""
    stages_per_rank: int = 1
    """Stages of a pipeline that each rank holds; above 1 only interleaved."""
    cuts: list[int] = field(default_factory=list)
    """First block of each stage but the first; empty: where the costliest stage costs least at the run's length."""
    gather_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Type in which the shards of projections and experts are gathered; shards, and all other weights (embeddings,
    routers, norms, convolutions, A_log, D, dt_bias), are float32 in any case. auto: bfloat16 on GPUs that compute in
    it, which halves what travels and rounds no more than the products do; else float32."""
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which the gradients of projections and experts are summed over the ranks; all others are in float32."""
    reshard_after_forward: Literal["auto", True, False] = "auto"
    """Whether a block's gathered weights are freed after its forward pass and gathered again for the backward pass;
    those outside blocks (embeddings, output projection), which both need at once, never are. auto: true. false saves
    one gather of two and takes the memory of all gathered weights."""
    offload: bool = False
    """Keep shards, gradients and moments in main memory, where AdamW then runs; for GPUs without room for them."""
    timeout_s: int = 600
    """Seconds that a rank waits in a training step for the others before the run ends with an error; with
    rollouts at least 1800, and where servers draw them rollout.server_seconds more."""

    def __post_init__(self) -> None:
        check("parallel", self, ">=", 1, "replicate", "expert", "context", "tensor", "timeout_s")
        check("parallel", self, ">=", 1, "pipeline", "stages_per_rank")
        check("parallel", self, ">=", 0, "shard")
        _check_schedule(self.schedule, self.stages_per_rank)

    @property
    def readers_of_one(self) -> int:
        """Ranks that read the same sequences: those that share them out, and those that hold other blocks."""
        return self.context * self.tensor * self.pipeline

    @property
    def kinds(self) -> str:
        """In words: `data (FSDP), context 8, expert 8`."""
        degrees = {name: getattr(self, name) for name in ("replicate", "context", "tensor", "expert", "pipeline")}
        return ", ".join(["data (FSDP)" if self.fsdp else "data", *(f"{k} {n}" for k, n in degrees.items() if n > 1)])


def _check_schedule(name: str, stages_per_rank: int) -> None:
    """Raise ValueError for a schedule that there is not, or that so many stages a rank cannot have."""
    plain, several = SCHEDULES
    if "zero" in name.lower() or name.lower().startswith("zb"):
        raise ValueError(
            f"parallel.schedule is {name}: zero-bubble schedules take gradients of inputs and of weights apart, and "
            f"the backward passes of the kernels are in one piece; use {several} or {plain}"
        )
    if name not in SCHEDULES:
        raise ValueError(f"parallel.schedule is {name}; it must be {plain} or {several}")
    if name == plain and stages_per_rank > 1:
        raise ValueError(
            f"parallel.stages_per_rank is {stages_per_rank} with the schedule {plain}, which has one stage a rank: "
            f"--set parallel.schedule={several}, or --set parallel.stages_per_rank=1"
        )
    if name == several and stages_per_rank == 1:
        raise ValueError(
            f"parallel.schedule is {name} with one stage a rank: --set parallel.stages_per_rank=2, or "
            f"--set parallel.schedule={plain}"
        )
