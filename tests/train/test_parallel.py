import pytest
import torch

from nano3.train.checkpoint.checkpointer import load_tensors
from nano3.train.tracking.metrics import read_metrics
from nano3.train.world import World

pytestmark = pytest.mark.any_isa

REPRODUCED = ("loss", "balance_loss", "grad_norm", "lr")
BALANCED = {"balance": {"loss_coef": 0.1}}


def _assert_same_run(first, second):
    lines, others = (read_metrics(run_dir / "metrics.jsonl") for run_dir in (first, second))
    assert [(line["kind"], line["step"]) for line in lines] == [(line["kind"], line["step"]) for line in others]
    for line, other in zip(lines, others, strict=True):
        for key in REPRODUCED:
            if key in line:
                assert other[key] == pytest.approx(line[key], abs=1e-5), (line["step"], key)
        for key in ("load_max_over_mean", "shares"):
            assert other.get(key) == line.get(key), (line["step"], key)


def _assert_same_state(trainer, run_dir):
    """The last checkpoint of `run_dir`, loaded in this one process, against the weights of `trainer`."""
    shapes = {f"model.{name}": torch.zeros_like(value) for name, value in trainer.model.state_dict().items()}
    loaded = load_tensors(run_dir / "checkpoints" / "step-6", shapes, World())
    for name, value in trainer.model.state_dict().items():
        there = loaded[f"model.{name}"]
        if name.endswith("e_score_correction_bias"):
            assert torch.equal(there, value)
        else:
            torch.testing.assert_close(there, value, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [True, False], ids=["fsdp", "copies"])
def test_two_ranks_equal_one_rank_with_accumulation_two(tiny, complete, tmp_path, fsdp):
    alone = tiny.trainer(tmp_path / "one", tiny.config(**BALANCED))
    alone.fit()
    complete(tmp_path / "two", ranks=2, settings={"parallel": {"fsdp": fsdp}, **BALANCED})
    _assert_same_run(tmp_path / "one", tmp_path / "two")
    _assert_same_state(alone, tmp_path / "two")


def test_a_sharded_run_of_two_ranks_continues_on_one(tiny, complete, tmp_path):
    horizon = {"schedule": {"horizon_tokens": 384}, **BALANCED}
    alone = tiny.trainer(tmp_path / "one", tiny.config(**horizon))
    alone.fit()
    complete(tmp_path / "resharded", ranks=2, settings={**horizon, "train": {"tokens": 192}})
    rest = tiny.trainer(tmp_path / "resharded", tiny.config(**horizon))
    assert rest.resume().name == "step-3"
    rest.fit()
    _assert_same_run(tmp_path / "one", tmp_path / "resharded")
    _assert_same_state(alone, tmp_path / "resharded")


IN_PIECES = pytest.param({"checkpoint_activations": "block", "sequence_chunk": 8}, marks=pytest.mark.slow)


@pytest.mark.parametrize("block", [{}, IN_PIECES], ids=["whole", "pieces"])
def test_a_rank_that_gets_padding_alone_keeps_step_with_the_other(tiny, complete, tmp_path, block):
    settings = {**BALANCED, "train": {"micro_batch_size": 1, "batch_size": 2, "tokens": 96, **block}}
    alone = tiny.trainer(tmp_path / "one", tiny.config(**settings), tiny.PaddedSource())
    alone.fit()
    complete(tmp_path / "two", "--source", "padded", ranks=2, settings=settings)
    _assert_same_run(tmp_path / "one", tmp_path / "two")
    _assert_same_state(alone, tmp_path / "two")


@pytest.mark.slow
def test_recomputation_under_sharding_and_a_resume_on_two_ranks(tiny, complete, tmp_path):
    settings = {"schedule": {"horizon_tokens": 384}, **BALANCED}
    alone = tiny.trainer(tmp_path / "one", tiny.config(**settings))
    alone.fit()
    block = {"checkpoint_activations": "block"}
    complete(tmp_path / "two", ranks=2, settings={**settings, "train": {"tokens": 192, **block}})
    complete(tmp_path / "two", "--resume", ranks=2, settings={**settings, "train": block})
    _assert_same_run(tmp_path / "one", tmp_path / "two")
    _assert_same_state(alone, tmp_path / "two")
