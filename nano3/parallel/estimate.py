"""Memory of one process of a run, counted without starting any."""

from __future__ import annotations

import math
from dataclasses import replace

from nano3.config.run import RunConfig
from nano3.model.count import rank_bytes
from nano3.parallel.stages import in_flight, stages_for


def process_bytes(cfg: RunConfig, dtype: str = "", seq_len: int = 0, ranks: int = 1, stage: int = 0) -> int:
    """nano3.model.count.rank_bytes of one of `ranks` processes, where it may hold some blocks alone: those of place
    `stage` along the pipeline, for all micro-batches that wait for their backward pass. Both embeddings are counted in
    every stage."""
    parallel, train = cfg.parallel, cfg.train
    if parallel.pipeline == 1:
        return rank_bytes(cfg, dtype, seq_len, ranks)
    own = stages_for(parallel, cfg.model, cfg.data.seq_len)[stage :: parallel.pipeline]
    pattern = "".join(cfg.model.pattern[number] for blocks in own for number in blocks)
    readers = ranks // parallel.readers_of_one
    step = -(-train.batch_size // (train.micro_batch_size * max(1, readers)))
    waiting = in_flight(stage, parallel.pipeline, parallel.stages_per_rank, step)
    part = replace(cfg, model=replace(cfg.model, pattern=pattern), parallel=replace(parallel, pipeline=1))
    passes = math.ceil(waiting / parallel.stages_per_rank)
    return rank_bytes(part, dtype, seq_len, ranks // parallel.pipeline, passes)
