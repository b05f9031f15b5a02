"""Whether a training run fits in memory, told before its data are prepared."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from nano3.config.errors import UserError
from nano3.config.extend_context import ExtendContextConfig
from nano3.config.policy import PolicyConfig
from nano3.config.run import RunConfig
from nano3.config.sft import SftConfig
from nano3.engine.sizing import available_memory
from nano3.kernels.eager.loss import logits_bytes
from nano3.model.count import LOGITS_BYTES, largest_seq_len
from nano3.model.dtype import compute_dtype
from nano3.parallel.estimate import process_bytes
from nano3.train.world import World

if TYPE_CHECKING:
    import torch

CERTAIN = 0.75
"""Part of the estimate that a run surely takes."""
_SETTING: dict[type, str] = {
    ExtendContextConfig: "context.lengths",
    SftConfig: "data.pack_length",
    PolicyConfig: "train.pack_length",
}
"""What says the length of a sequence, where it is not data.seq_len."""
SHORT_PIECE = 4096
"""Tokens of a piece beside which nothing much is won by shorter ones."""


def check_room(cfg: RunConfig, world: World, beside: int = 0) -> int:
    """Refuse a run whose estimated memory is surely more than what is free for this rank.

    Args:
        cfg: of the run.
        world: the ranks.
        beside: bytes that other models take on this rank: copies for rollouts, a judge.

    Returns:
        Bytes that the estimate leaves free; below 0 where the run may fit nevertheless.

    Raises:
        UserError: it does not fit; the line says what it takes, what there is, the largest length that fits (halving)
            and what else lowers the memory.
    """
    dtype = str(compute_dtype(cfg.train.dtype, world.device)).removeprefix("torch.")
    here = 1 if world.device.type == "cuda" else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    free = available_memory(world.device) // here
    more = _loss_bytes(world.device)

    def needs(seq_len: int = 0) -> int:
        return more + process_bytes(cfg, dtype, seq_len, world.size, world.pipeline.rank)

    need = needs()
    if need * CERTAIN + beside <= free:
        return free - need - beside
    draws_here = beside > 0 and isinstance(cfg, PolicyConfig) and not cfg.rollout.servers
    largest = largest_seq_len(cfg, free - beside, needs)
    fits = f"the longest that fits is {largest}" if largest else "half of that and so on does not fit either"
    where = f"on {world.device}" if world.device.type == "cuda" else "in main memory"
    setting = next((name for kind, name in _SETTING.items() if isinstance(cfg, kind)), "data.seq_len")
    a_rank = " a rank" if world.size > 1 else ""
    others = f", other models and rollouts {_gb(beside)}," if beside else ""
    elsewhere = "; samples can be drawn elsewhere: --set 'rollout.servers=[\"http://HOST:8000\"]'" if draws_here else ""
    raise UserError(
        f"{setting}: training on {cfg.train.micro_batch_size} x {cfg.data.seq_len} tokens takes about {_gb(need)}"
        f"{a_rank}{others} and {_gb(free)} are free {where}: {fits}; {_advice(cfg)}{elsewhere}"
    )


def _loss_bytes(device: torch.device) -> int:
    """What the loss takes beside the estimate, which is a CPU's: on a GPU it makes more logits at a time, and products
    of half their size stand beside them."""
    return 0 if device.type == "cpu" else max(0, 2 * logits_bytes(device) - LOGITS_BYTES)


def _advice(cfg: RunConfig) -> str:
    """What else lowers the memory."""
    train, ways = cfg.train, []
    if train.checkpoint_activations == "none":
        ways.append("--set train.checkpoint_activations=block")
    piece = max(SHORT_PIECE, cfg.model.chunk_size)
    if not 0 < train.sequence_chunk <= piece:
        ways.append(f"--set train.sequence_chunk={piece}")
    if cfg.parallel.context > 1 and (short := min(cfg.lengths)) < cfg.data.seq_len:
        way = "without parallel.context"
        if cfg.parallel.tensor == 1:
            way += ", or with less of it and parallel.tensor beside it"
        return f"train sequences of {short} tokens {way}: their states take more than their tokens"
    if train.micro_batch_size > 1:
        ways.append("--set train.micro_batch_size=1")
    return f"lower it, or try {' '.join(ways)}" if ways else "lower it, or take a smaller model or more memory"


def _gb(n: float) -> str:
    return f"{n / 1e6:.3g} MB" if n < 1e9 else f"{n / 1e9:.3g} GB" if n < 1e11 else f"{n / 1e9:.0f} GB"
