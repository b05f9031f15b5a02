"""One training step of the tiny preset on one long sequence; prints the process's peak memory and its time as JSON."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch._dynamo  # as a first optimizer does, with Triton where it is installed: it is no memory of a step

from nano3.config.presets import load_model
from nano3.config.schema import OptimizerConfig
from nano3.data.tokens.batch import Batch
from nano3.model.lm import LM
from nano3.train.loss import NextTokenLoss
from nano3.train.numerics import tune_process
from nano3.train.optimizer import build_optimizer
from nano3.train.step import Recipe, run_step
from nano3.train.tally import Tally
from nano3.train.world import World

DOCUMENT = 50_000
"""Tokens of a document: several are packed into a long sequence."""


def peak_bytes() -> int:
    """Most memory that this process ever had resident."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])


def make_batch(length: int) -> Batch:
    """Random tokens in documents of DOCUMENT tokens."""
    tokens = torch.randint(0, 4096, (1, length + 1), generator=torch.Generator().manual_seed(0))
    ids = (torch.arange(length) // DOCUMENT).int().unsqueeze(0)
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), ids, ["random"])


def main() -> None:
    """Train for `--steps` steps and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("length", type=int, help="tokens of the sequence")
    parser.add_argument("--checkpoint", action="store_true", help="recompute blocks in the backward pass")
    parser.add_argument("--sequence-chunk", type=int, default=0, help="most tokens of a pass through a block")
    parser.add_argument("--steps", type=int, default=1)
    args = parser.parse_args()
    tune_process(torch.device("cpu"))
    before = peak_bytes()
    model = LM(load_model("tiny")).init_weights(0).train()
    model.checkpoint_activations, model.sequence_chunk = args.checkpoint, args.sequence_chunk
    optimizer = build_optimizer(model, OptimizerConfig())
    recipe = Recipe(model, optimizer, NextTokenLoss(1e-4), World(), 1.0, 1e-3, Tally(World()))
    started = time.perf_counter()
    losses = [run_step(recipe, [make_batch(args.length)], lambda: False).loss for _ in range(args.steps)]
    seconds = (time.perf_counter() - started) / args.steps
    report = {"length": args.length, "peak_bytes": peak_bytes(), "before_bytes": before, "seconds": seconds}
    print(json.dumps(report | {"loss": losses[-1]}))


if __name__ == "__main__":
    main()
