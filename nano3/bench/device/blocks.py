"""Blocks of a decoding step as the device runs them, each kind by itself: `python -m nano3.bench.device.blocks`.

A model of one kind of block is measured at two depths, and the difference is that of the blocks: embedding, norm and
output projection cancel out. On a GPU they are CUDA graphs, on a CPU the same step as it stands.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from nano3.bench.costs import bytes_each, weights_read
from nano3.bench.device.ceilings import DeviceCeilings
from nano3.bench.device.timer import Timer
from nano3.bench.device.weights import random_model
from nano3.bench.versions import device_name
from nano3.config.errors import UserError
from nano3.config.model import ATTENTION, MAMBA, MOE, ModelConfig
from nano3.config.presets import load_model
from nano3.engine.launch import find_device
from nano3.model.decode.graphed import MOST_ROWS, GraphSteps
from nano3.model.decode.interface import Ahead
from nano3.model.dtype import inference_dtypes
from nano3.model.state.pool import StatePool, page_bytes, slot_bytes

PAGE, VOCABULARY, REPEAT = 64, 256, 20
TITLES = {MAMBA: "Mamba-2", MOE: "MoE", ATTENTION: "attention"}
DEPTHS = {MAMBA: 4, ATTENTION: 4, MOE: 1}
"""Blocks of the smaller of both models, by kind."""


def measure(
    cfg: ModelConfig, kind: str, batch: int, context: int, dtype: torch.dtype, device: torch.device, copy: float
) -> dict[str, Any]:
    """One kind of block: seconds a block and step, the bytes that it moves at the least, and their share of copying.

    Args:
        cfg: sizes.
        kind: symbol of the block.
        batch: sequences, up to 256.
        context: tokens of each with the new one.
        dtype: of weights and activations.
        device: where.
        copy: bytes a second that the device copies, read and written together.

    Raises:
        UserError: the step cannot be a graph.
    """
    depths = DEPTHS[kind], 2 * DEPTHS[kind]
    found = [_step(replace(cfg, pattern=kind * n, vocab_size=VOCABULARY), batch, context, dtype, device)
             for n in depths]  # fmt: skip
    (one, first), (two, second) = found
    seconds, moved = (two - one) / depths[0], (second - first) / depths[0]
    return {
        "name": f"{TITLES[kind]} block, batch {batch}",
        "kind": kind,
        "batch": batch,
        "context": context,
        "seconds": seconds,
        "bytes": moved,
        "least_seconds": moved / copy,
        # Noise can make the deeper model the faster one, where both are tiny.
        "share_of_copy": moved / copy / seconds if seconds > 0 else None,
    }


@torch.inference_mode()
def _step(cfg: ModelConfig, batch: int, context: int, dtype: torch.dtype, device: torch.device) -> tuple[float, float]:
    """Median seconds of a whole step, and its bytes."""
    model, width = random_model(cfg, device, dtype), -(-context // PAGE)
    pool = StatePool(cfg, batch, batch * width, PAGE, dtype=dtype, device=device)
    for block in pool.blocks:
        for tensor in vars(block).values() if block is not None else ():
            if isinstance(tensor, torch.Tensor):
                tensor.normal_()
    steps = [Ahead(i % cfg.vocab_size, i, list(range(i * width, (i + 1) * width)), context) for i in range(batch)]
    graphs = GraphSteps(model, "")
    run = graphs.launches(model, steps, pool)
    if run is None:
        raise UserError(f"a step of {cfg.pattern} cannot be a graph: {graphs.problem}")
    timer = Timer(device)
    for _ in range(2):  # computed as it stands, which compiles; then replayed
        timer.warm(run)
    if graphs.problem is not None:
        raise UserError(f"a step of {cfg.pattern} cannot be a graph: {graphs.problem}")
    seconds = statistics.median(timer.seconds(run) for _ in range(REPEAT if device.type == "cuda" else 3))
    return seconds, _bytes(cfg, batch, context, dtype, bytes_each(model))


def _bytes(cfg: ModelConfig, batch: int, context: int, dtype: torch.dtype, each: dict[str, float]) -> float:
    """Weights in use and keys and values are read, states read and written, one key and value written."""
    kv = page_bytes(cfg, 1, dtype)
    return weights_read(cfg, batch, each) + batch * (2 * slot_bytes(cfg, dtype) + (context + 1) * kv)


def measure_all(
    cfg: ModelConfig, kinds: str, batches: Sequence[int], context: int, dtype: torch.dtype, device: torch.device
) -> Iterator[dict[str, Any]]:
    """All kinds and batches, one at a time."""
    copy = DeviceCeilings(device).copy()
    for kind in kinds:
        for batch in batches:
            yield measure(cfg, kind, batch, context, dtype, device, copy) | {"copy_bytes_per_second": copy}


def main() -> None:
    """Print a result as JSON."""
    parser = argparse.ArgumentParser(prog="python -m nano3.bench.device.blocks", description=__doc__)
    parser.add_argument("--model", default="nano3-30b-a3b", help="a preset or a TOML file of sizes")
    parser.add_argument("--kinds", default=f"{MAMBA}{MOE}{ATTENTION}", help="symbols of blocks")
    parser.add_argument("--batches", default="1,64,256")
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args()
    try:
        device, cfg = find_device(given.device), load_model(given.model)
        dtype = inference_dtypes(given.dtype, device, torch.bfloat16)[0]
        batches = [int(text) for text in given.batches.split(",")]
        if max(batches) > MOST_ROWS or min(batches) < 1 or given.context < 1 or not set(given.kinds) <= set(TITLES):
            raise UserError(f"batches are from 1 to {MOST_ROWS}, kinds some of {''.join(TITLES)}, context is positive")
        cases = list(measure_all(cfg, given.kinds, batches, given.context, dtype, device))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    machine = {"device": device_name(device), "torch": torch.__version__}
    head = {"kind": "blocks", "model": given.model, "dtype": str(dtype).removeprefix("torch."), "machine": machine}
    print(json.dumps(head | {"cases": cases}))


if __name__ == "__main__":
    main()
