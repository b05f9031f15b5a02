"""A very small run that trains adapters; started as processes of its own by some tests.

It goes through nano3.stages.adapters as a stage does.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import tiny_run as tiny

from nano3.config.lora import LoraConfig
from nano3.model.find import model_folder
from nano3.model.hf.folder import fill, save
from nano3.model.lm import LM
from nano3.stages import adapters
from nano3.train.heldout import Heldout
from nano3.train.tracking.progress import Silent
from nano3.train.trainer import Trainer
from nano3.train.world import init_world


def run(run_dir: Path, base: Path, lora: LoraConfig, resume: bool = False, **sections: dict) -> Trainer:
    """Train to the end and leave adapter/ and model/; the trainer, with adapters that are not merged."""
    cfg, world = tiny.config(**sections), init_world()
    cfg = replace(cfg, balance=replace(cfg.balance, bias_rate=0.0))
    with torch.device("meta"):
        model = LM(cfg.model)
    adapters.add(model, lora)
    heldout = Heldout(cfg.heldout, {tiny.SEQ_LEN: tiny.TinySource(8, offset=50_000)}, tiny.SEQ_LEN)
    trainer = Trainer(cfg, model, tiny.text(cfg, world), run_dir, heldout, progress=Silent(), world=world)
    if not resume or trainer.resume() is None:
        fill(trainer.model, model_folder(base))
        adapters.begin(trainer.model, seed=1, rank=world.rank)
    trainer.fit()
    trainer.model.eval()
    with adapters.export(trainer.model, lora, run_dir, base, lambda _: None) if lora.rank else nullcontext():
        save(trainer.model, run_dir / "model")
    return trainer


def main() -> None:
    """Train adapters in RUN on BASE."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("--lora", type=json.loads, default={})
    parser.add_argument("--settings", type=json.loads, default={})
    args = parser.parse_args()
    run(args.run_dir, args.base, LoraConfig(**args.lora), **args.settings).world.close()


if __name__ == "__main__":
    main()
