"""The engine of a run's rollouts: in the trainer's process, or on servers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nano3.config.rlhf import AnyPolicyConfig
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.engine import Engine
from nano3.engine.protocol import GenerationEngine
from nano3.engine.request import Sampling
from nano3.engine.sizing import SHARE_OF_FREE, available_memory
from nano3.model.count import MASTER_BYTES, count_parameters
from nano3.model.lm import LM
from nano3.rl.grpo import Objective
from nano3.rl.remote.served import check_served
from nano3.rl.rollout import RolloutSettings, RolloutWorker
from nano3.rl.sync import Bound, WeightSync
from nano3.rl.training.reference import is_sharded, reference_bytes
from nano3.train.world import World, attempt

GIB = 1 << 30
LEAST_CONTEXT = 256
"""Tokens of context that the weight sync's probe needs."""
LEAST_SHARE = 0.05
"""Part of the free memory that the engine takes where the estimate of training leaves none."""


def open_engine(
    cfg: AnyPolicyConfig,
    model: Any,
    tokenizer: Tokenizer,
    world: World,
    folder: Path,
    left: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> GenerationEngine:
    """An engine on the trainer's own model; on a copy, filled at each sync, where that is sharded or has adapters; on
    servers where the settings name some.

    Args:
        cfg: of the run.
        model: the trainer's.
        tokenizer: of the model.
        world: the ranks; every one must call.
        folder: through which servers get weights, unless the settings name another.
        left: bytes that training leaves free on this rank. Where rollout.memory is 0 the engine takes its part of
            these, not of what is free before gradients, optimizer and activations are there; None: nothing trains.
        say: hears what the user should know.

    Raises:
        UserError: a server is not there, or memory is too short.
    """
    if cfg.rollout.servers:
        return _on_servers(cfg, tokenizer, world, folder, say)
    runs = _copy_of(model, world) if _on_a_copy(cfg, world) else model
    memory = int(cfg.rollout.memory * GIB) if cfg.rollout.memory else None
    if memory is None and left is not None:
        memory = int(max(left * SHARE_OF_FREE[world.device.type], LEAST_SHARE * available_memory(world.device)))
    context = max(cfg.context, LEAST_CONTEXT)
    engine = Engine(runs, tokenizer, memory=memory, max_sequences=cfg.rollout.sequences, max_context=context)
    for note in engine.sizes.notes:
        say(note)
    return engine


def bytes_beside(cfg: AnyPolicyConfig, source: Path, world: World) -> int:
    """Bytes that rollouts and the reference model surely take beside the trainer's: a copy of the weights in float32
    where there is one, rollout.memory, and the weights of `source` for a KL term; rollouts on servers take none."""
    reference = reference_bytes(cfg, source, world)
    if cfg.rollout.servers:
        return reference
    copy = MASTER_BYTES * count_parameters(cfg.model).total if _on_a_copy(cfg, world) else 0
    return copy + reference + int(cfg.rollout.memory * GIB)


def _on_a_copy(cfg: AnyPolicyConfig, world: World) -> bool:
    return is_sharded(cfg, world) or bool(cfg.lora.rank)


def _on_servers(
    cfg: AnyPolicyConfig, tokenizer: Tokenizer, world: World, folder: Path, say: Callable[[str], None]
) -> GenerationEngine:
    from nano3.rl.remote.engine import RemoteEngine

    own = cfg.rollout
    found: list[RemoteEngine] = []
    folder = Path(own.server_weights) if own.server_weights else folder

    def connect() -> None:
        check_served(folder)
        engine = RemoteEngine(
            own.servers, tokenizer, folder,
            sequences=max(1, own.sequences // world.size), max_context=max(cfg.context, LEAST_CONTEXT),
            seconds=own.server_seconds, say=say, thinking=own.thinking_budget > 0, vocab_size=cfg.model.vocab_size,
        )  # fmt: skip
        found.append(engine)

    world.agree(attempt(connect))
    return found[0]


def rollout_worker(cfg: AnyPolicyConfig, engine: GenerationEngine) -> RolloutWorker:
    """What draws groups as the settings say."""
    own, environments = cfg.rollout, cfg.environments
    settings = RolloutSettings(
        own.group, own.max_tokens, cfg.context, own.max_turns, own.temperature, own.top_p, own.thinking_budget or None,
        own.replay_experts, {"enable_thinking": own.thinking}, environments.workers, environments.seconds,
        own.overlap,
    )  # fmt: skip
    return RolloutWorker(engine, settings)


def weight_sync(cfg: AnyPolicyConfig, model: Any, engine: GenerationEngine, world: World) -> WeightSync:
    """What brings the trainer's weights to the engine and measures that they are there."""
    sampling = Sampling(temperature=cfg.rollout.temperature, top_p=cfg.rollout.top_p)
    bound = Bound(cfg.sync.mean, cfg.sync.largest) if cfg.sync.mean else None
    return WeightSync(model, engine, sampling=sampling, temperature=cfg.rollout.temperature, bound=bound, world=world)


def objective(cfg: AnyPolicyConfig) -> Objective:
    """The loss's settings; its temperature is that of the rollouts."""
    own = cfg.objective
    return Objective(
        own.clip_low, own.clip_high, own.importance_low, own.importance_high, own.sequence_threshold, own.kl_coef,
        cfg.rollout.temperature,
    )  # fmt: skip


def _copy_of(model: Any, world: World) -> LM:
    """A model of the same sizes without weights, which the first sync brings."""
    with torch.device("meta"):
        copy = LM(model.cfg)
    copy.to_empty(device=world.device)
    copy.compute_dtype = model.compute_dtype
    return copy.requires_grad_(False)
