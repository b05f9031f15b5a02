"""What the settings of a training run contradict, told before torch is imported and data are prepared."""

from __future__ import annotations

import dataclasses
import re
from importlib.metadata import version
from typing import TypeVar

from nano3.config.checks import as_typed
from nano3.config.errors import UserError
from nano3.config.genrm import GenrmConfig
from nano3.config.policy import PolicyConfig
from nano3.config.rlhf import AnyPolicyConfig
from nano3.config.run import RunConfig
from nano3.config.sections.parallel import ParallelConfig
from nano3.config.sft import SftConfig
from nano3.data.tokens.steps import Plans, make_plans
from nano3.model.lora.targets import expert_targets, head_targets
from nano3.parallel.layout import check_lengths, layout_of
from nano3.parallel.stages import stages_for
from nano3.train.schedule import build_schedule
from nano3.train.tracking.trackers import check_trackers

Config = TypeVar("Config", bound=RunConfig)
NOT_OF_POLICIES = {
    "pipeline": "reinforcement learning asks the model for log-probabilities between steps, in passes of whole models",
    "offload": "reinforcement learning was never tried with weights in main memory",
}
"""Settings of the section parallel that reinforcement learning does not know, and why."""
TWO_SETS_TORCH = (2, 13)
"""The first PyTorch whose FSDP shards the parameters of a block over two sets of processes."""
NEED_TWO_SETS = ("expert", "gather_dtype", "reduce_dtype")
"""Settings of the section parallel that need it, beside their defaults."""


def check_settings(cfg: RunConfig, ranks: int) -> None:
    """Refuse settings that contradict each other, or ask for a package that is not installed.

    Args:
        cfg: the run.
        ranks: processes that read different sequences.

    Raises:
        ValueError: which settings, and what to do.
    """
    build_schedule(cfg.schedule, cfg.train.tokens, cfg.train.steps)
    _check_interleaved(cfg, make_plans(fit_micro_batch(cfg, ranks), 0, ranks))
    check_trackers(cfg.log)


def _check_interleaved(cfg: RunConfig, plans: Plans) -> None:
    """Refuse stages that are interleaved with another number of micro-batches than the schedule knows."""
    parallel = cfg.parallel
    if parallel.stages_per_rank == 1:
        return
    for length, count in plans.micro_batches.items():
        if count % parallel.pipeline:
            possible = [n for n in range(2, parallel.pipeline) if count % n == 0]
            fewer = f"--set parallel.pipeline={possible[-1]}, " if possible else ""
            raise ValueError(
                f"parallel.schedule is interleaved over {parallel.pipeline} processes, and each reads {count} "
                f"micro-batches of {length} tokens a step, no multiple of that: {fewer}another train.batch_size, or "
                "--set parallel.schedule=1f1b --set parallel.stages_per_rank=1"
            )


def check_policy_settings(cfg: PolicyConfig) -> None:
    """The same for reinforcement learning, whose steps have no fixed number of sequences."""
    build_schedule(cfg.schedule, 0, cfg.train.steps)
    check_trackers(cfg.log)


def check_parallel(cfg: RunConfig | AnyPolicyConfig | GenrmConfig, n_processes: int) -> None:
    """Refuse an arrangement of processes that these cannot have, or that the stage cannot use.

    Raises:
        UserError: which setting, and the nearest value that is possible.
    """
    if isinstance(cfg, GenrmConfig):
        for part in (cfg.sft(""), cfg.rlvr("")):
            check_parallel(part, n_processes)
        return
    parallel = cfg.parallel
    if isinstance(cfg, PolicyConfig):
        _check_policy(parallel)
    layout_of(parallel, cfg.model, n_processes)
    stages_for(parallel, cfg.model, cfg.data.seq_len)
    check_lengths(parallel, cfg.model, [*cfg.lengths, *getattr(cfg, "heldout_lengths", [])])
    _check_torch(parallel)
    lora = cfg.lora if isinstance(cfg, SftConfig | PolicyConfig) else None
    if parallel.pipeline > 1 and lora is not None and lora.rank:
        raise UserError(
            f"parallel.pipeline is {parallel.pipeline}: a folder of adapters is written by a process that "
            "holds those of all blocks; --set parallel.pipeline=1, or --set lora.rank=0"
        )
    if parallel.expert > 1 and lora is not None and (names := expert_targets(cfg.model, lora)):
        raise UserError(
            f"parallel.expert is {parallel.expert}: it divides experts, not adapters such as {names[0]} of theirs; "
            "choose lora.targets without experts, or --set parallel.expert=1"
        )
    if parallel.tensor > 1 and lora is not None and (names := head_targets(cfg.model, lora)):
        raise UserError(
            f"parallel.tensor is {parallel.tensor}: it divides heads, not adapters such as {names[0]} of theirs; "
            "choose lora.targets without attention and Mamba-2 blocks, or --set parallel.tensor=1"
        )


def _check_policy(parallel: ParallelConfig) -> None:
    """Refuse what a policy that draws samples cannot be trained with."""
    for name, reason in NOT_OF_POLICIES.items():
        asked, default = getattr(parallel, name), getattr(ParallelConfig(), name)
        if asked != default:
            raise UserError(
                f"parallel.{name} is {as_typed(asked)}: {reason}; --set parallel.{name}={as_typed(default)}"
            )


def _check_torch(parallel: ParallelConfig) -> None:
    installed, needed = version("torch"), ".".join(map(str, TWO_SETS_TORCH))
    if tuple(map(int, re.findall(r"\d+", installed)[:2])) >= TWO_SETS_TORCH:
        return
    for name in NEED_TWO_SETS:
        asked, default = getattr(parallel, name), getattr(ParallelConfig(), name)
        if asked not in (default, "float32"):
            raise UserError(
                f"parallel.{name} is {asked}: it needs PyTorch {needed} or newer, and {installed} is installed; "
                f"pip install 'torch>={needed}', or --set parallel.{name}={default}"
            )


def fit_micro_batch(cfg: Config, ranks: int) -> Config:
    """`cfg` with the greatest train.micro_batch_size, up to the one it has, that divides each rank's part of a step;
    `cfg` itself where its own does.

    Raises:
        UserError: a step's sequences cannot be shared evenly.
    """
    batch, most = cfg.train.batch_size, cfg.train.micro_batch_size
    if batch % ranks:
        raise UserError(
            f"train.batch_size {batch} cannot be shared evenly by {ranks} processes: "
            f"--set train.batch_size={-(-batch // ranks) * ranks}, or start another number of processes"
        )
    each = batch // ranks
    micro = next(count for count in range(min(most, each), 0, -1) if each % count == 0)
    if micro == most:
        return cfg
    return dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, micro_batch_size=micro))
