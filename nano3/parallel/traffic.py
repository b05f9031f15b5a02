"""How many bytes a process gets from others in a training step, without running one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from nano3.config.model import MAMBA, ModelConfig
from nano3.config.sections.parallel import ParallelConfig
from nano3.parallel.fake_step import PURPOSES, fake_step
from nano3.parallel.layout import Layout
from nano3.parallel.precision import precision_of
from nano3.parallel.shards import share_of


def received_bytes(
    model: ModelConfig,
    cfg: ParallelConfig,
    layout: Layout,
    rank: int,
    stages: Sequence[range],
    rows: int,
    seq_len: int,
    passes: int,
    recompute: bool = False,
) -> dict[str, int]:
    """Bytes that come to process `rank` in an optimizer step, as on GPUs that compute in bfloat16, by purpose.

    One block of each kind goes through a step without numbers, and is multiplied. Tokens are taken to be spread evenly
    over the experts; counts, the loss, and the norm of gradients, some bytes each, are left out.

    Args:
        model: the whole model.
        cfg: how shards travel.
        layout: of all processes.
        rank: which of them.
        stages: numbers of the blocks of its stages of a pipeline; without one, of all blocks.
        rows: sequences of a micro-batch.
        seq_len: their tokens.
        passes: micro-batches of a step.
        recompute: compute blocks again in the backward pass.

    Returns:
        PURPOSES, and "stages" for what passes between stages of a pipeline.
    """
    tokens = rows * seq_len // (layout.context * layout.tensor)
    ends = _ends(model, cfg, layout, (True, True))
    total = Counter(_ends(model, cfg, layout, _held_ends(model, stages)))
    for kind, blocks in _kinds(model, stages).items():
        step = fake_step(model, cfg, layout, rank, recompute, blocks[:1])
        for purpose in PURPOSES:
            received = step.received[purpose]
            if purpose in ends:
                received -= ends[purpose]
            elif purpose == "slices" and kind == MAMBA:
                received *= rows
            else:
                received = received * tokens // step.tokens
            total[purpose] += received * len(blocks)
    total["stages"] = tokens * model.d_model * torch.bfloat16.itemsize * _borders(model, stages)
    found = {purpose: total[purpose] * passes for purpose in (*PURPOSES, "stages")}
    if not cfg.fsdp:  # sums of whole gradients, once a step
        held = share_of(model, layout, rank, False, [number for stage in stages for number in stage]).parameters
        found["gradients"] = 2 * _others(held * torch.float32.itemsize, layout.stage)
    return found


def _kinds(model: ModelConfig, stages: Sequence[range]) -> dict[str, list[int]]:
    """Numbers of the blocks of each kind."""
    numbers = [number for stage in stages for number in stage]
    kinds = dict.fromkeys(model.pattern[number] for number in numbers)
    return {kind: [number for number in numbers if model.pattern[number] == kind] for kind in kinds}


def _held_ends(model: ModelConfig, stages: Sequence[range]) -> tuple[bool, bool]:
    """Whether the embeddings, and the final norm and output projection, are held."""
    return any(stage.start == 0 for stage in stages), any(stage.stop == model.n_blocks for stage in stages)


def _ends(model: ModelConfig, cfg: ParallelConfig, layout: Layout, held: tuple[bool, bool]) -> dict[str, int]:
    """Of a pass through embeddings and output projection, whose weights are gathered once."""
    if not cfg.fsdp or layout.stage == 1:
        return {"weights": 0, "gradients": 0}
    types = precision_of(cfg, torch.bfloat16, torch.device("cuda"))
    norm, table = (_padded(rows, layout.replica) for rows in (model.d_model, model.vocab_size))
    wide = (held[0] * table * model.d_model + held[1] * norm) * torch.float32.itemsize
    narrow = held[1] * table * model.d_model
    sums = wide + narrow * types.reduce.itemsize
    of_replicas = 2 * _others(sums // layout.replica, layout.replicate)
    return {
        "weights": _others(wide + narrow * types.gather.itemsize, layout.replica),
        "gradients": _others(sums, layout.replica) + of_replicas,
    }


def _borders(model: ModelConfig, stages: Sequence[range]) -> int:
    """Ends of stages where activations come in, or their gradients come back."""
    return sum((stage.start > 0) + (stage.stop < model.n_blocks) for stage in stages)


def _padded(rows: int, processes: int) -> int:
    return -(-rows // processes) * processes


def _others(size: int, processes: int) -> int:
    """What of `size` bytes comes from the others."""
    return size * (processes - 1) // processes
