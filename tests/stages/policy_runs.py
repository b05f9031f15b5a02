"""What tests of reinforcement learning start from and read in run folders."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from nano3.config.presets import load_sft
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.model.hf.folder import save
from nano3.model.lm import LM
from nano3.rl.rollout_files import read_rollouts, rollouts_path


class Killed(BaseException):
    """The process was killed here."""


def save_base(folder: Path, *ends: str, spare_ids: int = 0) -> Path:
    """A small model with a chat tokenizer, spread so that its samples differ, which now and then writes these tokens
    and those that end an answer: so not all are truncated. It has `spare_ids` more than the tokenizer."""
    tokenizer = Tokenizer.train(["the quick brown fox spells words and counts letters\n" * 3], 320)
    ids = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    sizes = {
        "vocab_size": tokenizer.vocab_size + spare_ids,
        "d_model": 32,
        "d_expert": 32,
        "d_shared": 32,
        "pattern": "M*E",
    }
    model = LM(dataclasses.replace(load_sft("tiny").model, init_std=0.2, **sizes, **ids)).init_weights(0)
    with torch.no_grad():
        for name in (tokenizer.eos_id, *map(tokenizer.token_id, ("<|im_end|>", *ends))):
            model.lm_head.weight[name] *= 3
    model.stage = "sft"
    save(model, folder, extra=tokenizer.save)
    return folder


def steps_of(folder: Path) -> list[dict[str, Any]]:
    """All that metrics.jsonl says of the steps, but for wall-clock values."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "clock"} for line in lines if line["kind"] == "train"]


def loads_of(folder: Path) -> list[list[list[float]]]:
    """Shares of tokens by step, mixture block and expert."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [line["shares"] for line in lines if line["kind"] == "load"]


def tasks_of(folder: Path, step: int) -> list[tuple[Any, ...]]:
    """What a step drew, with rewards."""
    return [(s.environment, s.task, s.index, s.seed, s.reward) for s in read_rollouts(rollouts_path(folder, step))]
