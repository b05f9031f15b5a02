"""Reinforcement learning on several ranks: the same numbers as on one process."""

from __future__ import annotations

import pytest

from .conftest import same_run

BALANCED = {"balance": {"bias_rate": 0.05}, "optimizer": {"clip_norm": 0.5}}
OF_POLICY = ("policy_loss", "entropy", "mismatch", "mismatch_kl", "masked_tokens", "clipped_tokens", "kl")
HEADS = {"model": {"mamba_n_heads": 4, "n_groups": 2}}
WITH_KL = {"train": {"seed": 1}}


def same_policy(found, alone):
    same_run(found, alone)
    for here, there in zip(found.metrics, alone.metrics, strict=True):
        for name in OF_POLICY:
            if name in there:
                assert here[name] == pytest.approx(there[name], rel=1e-5 * max(1, here["step"]), abs=1e-7), name
    first = next(line for line in alone.metrics if "masked_tokens" in line)
    assert 0.1 < first["masked_tokens"] < 0.9  # by sequences that lie in several slices, too


@pytest.mark.parametrize("settings", [WITH_KL, pytest.param({}, marks=pytest.mark.slow)], ids=["kl", "left out"])
@pytest.mark.parametrize(
    "parallel", [{"context": 2}, {"expert": 2}, pytest.param({"tensor": 2}, marks=pytest.mark.slow)]
)
def test_a_policy_that_two_ranks_train_is_that_of_one(finish, parallel, settings):
    settings = {**BALANCED, **HEADS, **settings}
    run = finish("two", "--policy", ranks=2, **settings, parallel=parallel)
    same_policy(run, finish("one", "--policy", **settings))


REFERENCE = """
import dataclasses
import sys
from pathlib import Path
import numpy as np
import torch
from nano3.config.presets import load_model, load_rlvr
from nano3.model.hf.folder import load, save
from nano3.model.lm import LM
from nano3.parallel.tensor import sharing
from nano3.rl.batch import TrainingSample, pack_samples
from nano3.rl.training.reference import open_reference, with_reference
from nano3.train.world import init_world

world, folder = init_world({"tensor": 2}), Path(sys.argv[1])
save(LM(dataclasses.replace(load_model("tiny"), init_std=0.2)).init_weights(0), folder)
world.barrier()
ids = np.random.default_rng(0).integers(3, 200, 30)
[batch] = pack_samples([TrainingSample(ids, np.ones(30, bool), np.zeros(30, np.float32), 1.0)], 32, 1)
whole = with_reference(batch, load(folder), 1.0, None).reference
shared = sharing(world.sequence.handle, None, world.tensor.handle)
for fsdp in ("true", "false"):
    cfg = load_rlvr("tiny", ["parallel.tensor=2", f"parallel.fsdp={fsdp}", "train.dtype=float32"])
    cfg = dataclasses.replace(cfg, model=load_model("tiny"))
    reference = open_reference(cfg, folder, torch.float32, world)
    found = with_reference(batch, reference, 1.0, shared).reference
    print((found - whole).abs().max().item(), flush=True)
world.close()
"""


def test_the_model_of_the_divergence_has_its_heads_divided_in_shards_and_in_copies(processes, tmp_path):
    outputs = [process.communicate(timeout=120) for process in processes("-c", REFERENCE, str(tmp_path), ranks=2)]
    assert [[float(line) < 1e-4 for line in out.splitlines()] for out, _ in outputs] == [[True, True]] * 2, outputs
