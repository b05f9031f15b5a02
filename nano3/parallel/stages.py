"""Where a model is cut into the stages of a pipeline, and in which order its processes work on them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from nano3.config.errors import UserError
from nano3.config.model import ATTENTION, MAMBA, MOE, ModelConfig
from nano3.config.sections.parallel import ParallelConfig
from nano3.model.count import block_parameters, scan_flops


class Action(NamedTuple):
    """What one process does in one turn: one micro-batch through one stage."""

    forward: bool
    """Whether it is the forward pass."""
    stage: int
    batch: int


def block_cost(cfg: ModelConfig, symbol: str, seq_len: int) -> float:
    """Forward floating-point operations of a block on one token, at the mean distance to its keys."""
    idle = (cfg.n_experts - cfg.top_k) * 2 * cfg.d_model * cfg.d_expert if symbol == MOE else 0
    keys = 2 * 2 * cfg.n_heads * cfg.head_dim * seq_len / 2 if symbol == ATTENTION else 0
    scan = scan_flops(cfg, seq_len) if symbol == MAMBA else 0
    return 2 * (block_parameters(cfg, symbol) - idle) + keys + scan


def stages_of(cfg: ModelConfig, n_stages: int, seq_len: int, cuts: Sequence[int] = ()) -> list[range]:
    """Numbers of the blocks of each stage; the last one has the output projection too.

    Args:
        cfg: the model.
        n_stages: 1 to the number of blocks.
        seq_len: tokens of a sequence, with which attention grows.
        cuts: first block of every stage but the first; empty: so that the costliest stage costs as little as can be.
    """
    costs = _costs(cfg, seq_len)
    edges = [0, *(cuts or even_cuts(costs, n_stages)), len(costs)]
    return [range(start, stop) for start, stop in pairwise(edges)]


def evenness(cfg: ModelConfig, stages: Sequence[range], seq_len: int) -> float:
    """Mean cost of a stage over that of the costliest, for which the others wait."""
    costs = _costs(cfg, seq_len)
    sums = [sum(costs[blocks.start : blocks.stop]) for blocks in stages]
    return sum(sums) / len(sums) / max(sums)


def _costs(cfg: ModelConfig, seq_len: int) -> list[float]:
    costs = [block_cost(cfg, symbol, seq_len) for symbol in cfg.pattern]
    costs[-1] += 2 * cfg.vocab_size * cfg.d_model
    return costs


def stages_for(cfg: ParallelConfig, model: ModelConfig, seq_len: int) -> list[range]:
    """Blocks of each stage of the pipeline that `cfg` asks for, on rows of `seq_len` tokens.

    Raises:
        UserError: the model has fewer blocks than that, or parallel.cuts do not cut it into so many.
    """
    n_stages, cuts = cfg.pipeline * cfg.stages_per_rank, cfg.cuts
    if n_stages > model.n_blocks:
        most = max(1, model.n_blocks // cfg.stages_per_rank)
        raise UserError(
            f"parallel.pipeline is {cfg.pipeline}: {model.n_blocks} blocks do not divide into {n_stages} stages; the "
            f"most is --set parallel.pipeline={most}"
        )
    edges = [0, *cuts, model.n_blocks]
    if cuts and (len(cuts) != n_stages - 1 or any(a >= b for a, b in pairwise(edges))):
        nearest = ",".join(str(blocks.start) for blocks in stages_of(model, n_stages, seq_len)[1:])
        raise UserError(
            f"parallel.cuts is {cuts}: {n_stages} stages of {model.n_blocks} blocks begin, but for the first, at "
            f"{n_stages - 1} rising numbers from 1 to {model.n_blocks - 1}; by cost: --set parallel.cuts=[{nearest}]"
        )
    return stages_of(model, n_stages, seq_len, cuts)


def even_cuts(costs: Sequence[float], n_parts: int) -> list[int]:
    """Where to cut a row into `n_parts` that are not empty, so that the sum of the costliest is least."""
    sums = [0.0]
    for cost in costs:
        sums.append(sums[-1] + cost)
    # Of the first n costs in so many parts: the costliest part, and where the last one begins.
    best = [(total, 0) for total in sums]
    begins = []
    for parts in range(2, n_parts + 1):
        best = [
            min(((max(best[k][0], sums[n] - sums[k]), k) for k in range(parts - 1, n)), default=(float("inf"), 0))
            for n in range(len(sums))
        ]
        begins.append([k for _, k in best])
    cuts, end = [], len(costs)
    for places in reversed(begins):
        end = places[end]
        cuts.append(end)
    return cuts[::-1]


def timetable(n_ranks: int, n_chunks: int, n_batches: int) -> list[list[Action | None]]:
    """What each process does in each turn; results travel between turns.

    Stage s is on process s % `n_ranks`, each of which has `n_chunks` stages. With one stage each it is the schedule
    1F1B (Narayanan et al. 2021, arXiv 2104.04473, section 2.2.1), with more the interleaved one (section 2.2.2).

    Raises:
        ValueError: several stages each, and micro-batches that are no multiple of the processes.
    """
    if n_chunks > 1 and n_batches % n_ranks:
        raise ValueError(f"{n_batches} micro-batches a step cannot be interleaved over {n_ranks} processes")
    orders = [deque(_order(rank, n_ranks, n_chunks, n_batches)) for rank in range(n_ranks)]
    done: set[Action] = set()
    table: list[list[Action | None]] = []
    while any(orders):
        turn = [order[0] if order and _ready(order[0], done, n_ranks * n_chunks) else None for order in orders]
        acting = [action for action in turn if action is not None]
        assert acting, "an order of actions in which all wait for each other"
        for order, action in zip(orders, turn, strict=True):
            if action is not None:
                order.popleft()
        done.update(acting)
        table.append(turn)
    return table


def next_stage(action: Action, n_stages: int) -> Action | None:
    """The action that needs the result of this one on another process; None: none does."""
    stage = action.stage + (1 if action.forward else -1)
    return Action(action.forward, stage, action.batch) if 0 <= stage < n_stages else None


def in_flight(rank: int, n_ranks: int, n_chunks: int, n_batches: int) -> int:
    """Most passes, of a micro-batch through one stage each, whose activations a process holds at a time."""
    return min(_warmup(rank, n_ranks, n_chunks) + 1, n_chunks * n_batches)


def _warmup(rank: int, n_ranks: int, n_chunks: int) -> int:
    """Forward passes of a process before its first backward pass, but for the one just before that."""
    behind = n_ranks - 1 - rank
    return behind if n_chunks == 1 else (n_chunks - 1) * n_ranks + 2 * behind


def _order(rank: int, n_ranks: int, n_chunks: int, n_batches: int) -> list[Action]:
    """The actions of one process: some forward passes, then a forward and a backward pass in turn."""
    total = n_batches * n_chunks
    ahead = min(_warmup(rank, n_ranks, n_chunks), total)
    passes = [_nth(k, n_ranks, n_chunks) for k in range(total)]
    forward = [Action(True, chunk * n_ranks + rank, batch) for chunk, batch in passes]
    backward = [Action(False, (n_chunks - 1 - chunk) * n_ranks + rank, batch) for chunk, batch in passes]
    pairs = [action for pair in zip(forward[ahead:], backward, strict=False) for action in pair]
    return [*forward[:ahead], *pairs, *backward[total - ahead :]]


def _nth(k: int, n_ranks: int, n_chunks: int) -> tuple[int, int]:
    """Chunk and micro-batch of a process's pass number k: as many micro-batches as processes through each chunk."""
    if n_chunks == 1:
        return 0, k
    round_, place = divmod(k, n_ranks * n_chunks)
    chunk, batch = divmod(place, n_ranks)
    return chunk, round_ * n_ranks + batch


def _ready(action: Action, done: set[Action], n_stages: int) -> bool:
    if action.forward:
        return action.stage == 0 or action._replace(stage=action.stage - 1) in done
    above = action._replace(stage=action.stage + 1)
    return action._replace(forward=True) in done and (action.stage == n_stages - 1 or above in done)
