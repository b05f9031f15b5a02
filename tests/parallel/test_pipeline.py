"""Blocks divided among ranks: the same numbers as on one process, whatever the schedule and the cuts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.testing._internal.distributed.fake_pg import FakeStore

from nano3.config.errors import UserError
from nano3.model.hf.folder import fill, save
from nano3.model.lm import LM
from nano3.parallel.pipeline import Pipeline, keep_stages

from ..train.tiny_run import MODEL
from .conftest import same_run

BALANCED = {"balance": {"loss_coef": 0.1, "bias_rate": 0.05}, "optimizer": {"clip_norm": 0.5}}
ONE = {"micro_batch_size": 1}
IN_PIECES = {"checkpoint_activations": "block", "sequence_chunk": 8}
FROZEN = ["blocks.0.*", "embeddings.*"]
REFUSED = """
import sys
sys.path.insert(0, sys.argv[1])
import tiny_run as tiny
from pathlib import Path
from nano3.config.errors import UserError
from nano3.parallel.layout import axes_of
from nano3.train.world import init_world

class Whole:
    shown = "loss"

frozen = {"train": {"freeze": ["blocks.0.*", "embeddings.*"]}, "parallel": {"pipeline": 2, "cuts": [1]}}
cfg = tiny.config(**frozen)
world = init_world(axes_of(cfg.parallel))
for options in ({"loss": Whole()}, {}):
    try:
        tiny.trainer(Path("none"), cfg, world=world, **options)
    except (UserError, ValueError) as error:
        print(error)
world.close()
"""
ALONE = """
import sys
import time
sys.path.insert(0, sys.argv[1])
import tiny_run as tiny
import torch
from nano3.config.sections.parallel import ParallelConfig
from nano3.model.lm import LM
from nano3.train.faults import LostProcessError, Patience, steps_limited
from nano3.train.parallel import parallelize
from nano3.train.world import init_world

world = init_world({"pipeline": 2})
pipeline = parallelize(LM(tiny.MODEL).init_weights(0), world, ParallelConfig(pipeline=2))
try:
    with steps_limited(world, Patience(1)):
        if world.rank == 0:
            time.sleep(5)
        elif sys.argv[2] == "train":
            pipeline.train([(1, 8)], lambda part, i: None)
        else:
            pipeline.through((1, 8), lambda part: None)
except LostProcessError as error:
    print(error)
"""
INTERLEAVED = {"schedule": "interleaved", "stages_per_rank": 2}


def same_as_one(finish, *flags, ranks=2, train=None, **parallel):
    settings = {**BALANCED, "train": {**ONE, **(train or {})}}
    run = finish("many", *flags, ranks=ranks, **settings, parallel={"pipeline": 2, **parallel})
    same_run(run, finish("one", *flags, **BALANCED, train=ONE))


def test_two_stages_train_as_one_process(finish):
    same_as_one(finish)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parallel", "train"),
    [(INTERLEAVED, IN_PIECES), ({"cuts": [4]}, {"checkpoint_activations": "block"})],
    ids=["interleaved in pieces", "cut and recomputed"],
)
def test_schedules_and_cuts(finish, parallel, train):
    same_as_one(finish, train=train, **parallel)


@pytest.mark.slow
def test_three_stages_of_different_sizes(finish):
    same_as_one(finish, ranks=3, pipeline=3, cuts=[1, 3])


@pytest.mark.slow
def test_micro_batches_of_different_lengths(finish):
    same_as_one(finish, "--source", "ragged")


@pytest.mark.slow
@pytest.mark.parametrize(
    "parallel",
    [{}, {"fsdp": False}, {"replicate": 2, "cuts": [1]}, {"context": 2, "expert": 2, **INTERLEAVED}],
    ids=["shards", "copies", "replicas", "slices and experts"],
)
def test_four_ranks_two_a_stage(finish, parallel):
    same_as_one(finish, ranks=4, **parallel)


@pytest.mark.slow
def test_stages_of_replicas_gather_in_bfloat16(finish):
    """As every run on GPUs does: the forward pass is the same bits, and gradients are rounded on the way."""
    settings = {"train": {**ONE, "dtype": "bfloat16", "tokens": 128}, "heldout": {"every_tokens": 0}}
    (wide, *_), (narrow, *_) = (
        finish(kind, ranks=4, **settings, parallel={"pipeline": 2, "replicate": 2, "gather_dtype": kind}).metrics
        for kind in ("float32", "bfloat16")
    )
    assert narrow["loss"] == wide["loss"]
    assert narrow["grad_norm"] != wide["grad_norm"]
    assert narrow["grad_norm"] == pytest.approx(wide["grad_norm"], rel=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False], ids=["stages first", "one process first"])
def test_a_run_goes_on_with_stages_or_without(finish, first):
    """Of one process's two stages the first has nothing to train, so that its output has no gradient."""
    staged, alone = {"ranks": 2, "parallel": {"pipeline": 2, "cuts": [1, 2, 4], **INTERLEAVED}}, {}
    settings = {**BALANCED, "train": {**ONE, "freeze": FROZEN}, "schedule": {"horizon_tokens": 384}}
    half = {"tokens": 192}
    before, after = (staged, alone) if first else (alone, staged)
    finish("run", **{**settings, "train": {**settings["train"], **half}}, **before)
    run = finish("run", "--resume", **settings, **after)
    same_run(run, finish("one", **settings), first_gradients=4)


def test_a_stage_reads_its_blocks_from_a_folder_of_the_whole_model(tmp_path):
    whole = LM(MODEL).init_weights(1)
    save(whole, tmp_path / "model")
    for stages, ends in (([range(2)], {"embeddings"}), ([range(1, 3), range(4, 5)], {"norm_f", "lm_head"})):
        part = LM(MODEL)
        keep_stages(part, stages)
        fill(part, tmp_path / "model")
        names = dict(part.named_parameters())
        assert {name.partition(".")[0] for name in names} == {"blocks", *ends}
        assert {int(name.split(".")[1]) for name in names if "blocks" in name} == {
            i for blocks in stages for i in blocks
        }
        assert all(torch.equal(value, whole.get_parameter(name)) for name, value in names.items())
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    save_file({**tensors, "backbone.layers.9.norm.weight": torch.ones(1)}, tmp_path / "model" / "model.safetensors")
    with pytest.raises(UserError, match=r"no place for, first backbone.layers.9.norm.weight"):
        fill(part, tmp_path / "model")


def test_messages_come_after_a_call_of_all_and_to_where_a_process_computes(monkeypatch):
    """With parallel.offload weights are elsewhere: here nowhere. NCCL wants all processes in a group's first call."""
    calls = []
    monkeypatch.setattr(dist, "all_reduce", lambda values, group=None: calls.append((values.device.type, group)))
    with torch.device("meta"):
        model = LM(MODEL)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        pipeline = Pipeline(model, [range(2), range(2, 5)], dist.group.WORLD, torch.device("cpu"))
        assert calls == [("cpu", dist.group.WORLD)]
        assert pipeline.room((2, 8)).device.type == "cpu"
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("how", ["train", "through"])
def test_a_stage_waits_for_the_one_before_no_longer_than_it_may(processes, how):
    _, waiting = processes("-c", ALONE, str(Path(__file__).parents[1] / "train"), how, ranks=2)
    out, error = waiting.communicate(timeout=60)
    assert "rank 1: no answer from another process within 1 s (parallel.timeout_s)" in out, (out, error)


def test_a_stage_with_nothing_to_train_and_a_loss_that_takes_whole_models_are_refused(processes):
    script = str(Path(__file__).parents[1] / "train")
    started = processes("-c", REFUSED, script, ranks=2)
    outputs = [process.communicate(timeout=300)[0] for process in started]
    for out in outputs:
        assert "pipeline is 2, and Whole does not say that it takes stages of a model: its attribute `in_stages`" in out
        assert (
            "all weights of the blocks 0 to 0, which one process holds, are frozen; lower it, or cut the model" in out
        )
