"""What a run says of a rank that is lost, slow, wrong or elsewhere."""

from __future__ import annotations

import re
import socket

import pytest
import torch.distributed as dist

from nano3.config.presets import load_rlvr
from nano3.model.lm import LM
from nano3.rl.grpo import GRPOLoss
from nano3.rl.training.engines import objective
from nano3.rl.training.steps import PolicySteps
from nano3.train.faults import LostProcessError, Patience, patience_of, steps_limited
from nano3.train.tracking.metrics import read_metrics
from nano3.train.trainer import Trainer
from nano3.train.world import World

HOST = socket.gethostname()
STALLS = {"train": {"tokens": 6 * 64}, "parallel": {"timeout_s": 2}}


def test_a_run_whose_other_rank_does_not_answer_ends_with_one_line(launch, tmp_path):
    first, second = launch(tmp_path / "run", "--stall", "3", ranks=2, settings=STALLS)
    out, error = first.communicate(timeout=60)
    assert first.returncode == 2, (out, error)
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert lines[0].startswith("error: rank 0: no answer from another process within 2 s (parallel.timeout_s)")
    second.kill()


LIMITS = """
import torch
from nano3.train.faults import Patience, steps_limited
from nano3.train.world import init_world

world = init_world()
for seconds, saving in ((5, None), (1800, 400), (900, None)):
    with steps_limited(world, Patience(seconds), saving):
        groups = (world.control, world.background)
        print(*[int(g._get_backend(torch.device("cpu")).options._timeout.total_seconds()) for g in groups])
world.close()
"""


def test_processes_wait_in_a_checkpoint_twice_as_long_as_in_a_step(processes):
    for rank in processes("-c", LIMITS, ranks=2):
        out, error = rank.communicate(timeout=60)
        # At least ten minutes; with rollouts, for which steps wait longer, no longer than without.
        assert out.splitlines() == ["5 600", "1800 800", "900 1800"], error


UNWRITABLE = """
import sys
from pathlib import Path

from nano3.config.presets import load_pretrain
from nano3.stages.run_folder import keep_settings
from nano3.train.world import init_world

world = init_world()
try:
    keep_settings(Path(sys.argv[1]), load_pretrain("tiny"), world)
except Exception as error:
    print(error)
world.close()
"""


def test_settings_that_the_main_rank_cannot_write_end_all_ranks(processes, tmp_path):
    (tmp_path / "config.toml").mkdir()  # nothing can be renamed to it
    for rank in processes("-c", UNWRITABLE, str(tmp_path), ranks=2):
        out, error = rank.communicate(timeout=60)
        assert "config.toml" in out, error
        assert out.count("\n") == 1


def test_a_run_whose_other_rank_ended_ends_with_one_line(launch, tmp_path):
    first, second = launch(tmp_path / "run", "--stall", "3", ranks=2, settings={"train": {"tokens": 6 * 64}})
    assert any(line.startswith("step 2") for line in second.stdout)
    second.kill()
    _, error = first.communicate(timeout=60)
    assert first.returncode == 2, error
    assert "error: rank 0: the connection to another process broke" in error


@pytest.mark.parametrize(
    "parallel",
    [{}, {"context": 2}, {"fsdp": False}, {"pipeline": 2}],
    ids=["shards", "slices", "copies", "stages"],
)
def test_a_loss_that_is_no_number_ends_all_ranks_with_its_place(launch, tmp_path, parallel):
    ranks = launch(tmp_path / "run", "--poison", "3", ranks=2, settings={"parallel": parallel})
    for rank in ranks:
        _, error = rank.communicate(timeout=60)
        assert rank.returncode == 2, error
        assert f"step 3 stopped before its update: loss nan, gradient norm nan, first seen on rank 1 ({HOST})," in error
        assert "in a batch of the documents doc-" in error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:400] writev: No route to host"), "the connection to another"),
        (
            dist.DistBackendError("ncclRemoteError: A call failed possibly due to a network error or a remote process "
                                  "exiting prematurely."),
            "the connection to another process",
        ),
        (
            dist.DistBackendError("ncclInvalidUsage: Duplicate GPU detected\nmore"),
            "it cannot speak to the other processes: ncclInvalidUsage: Duplicate GPU detected;",
        ),
        (RuntimeError("CUDA error: the launch timed out and was terminated"), None),
    ],
)  # fmt: skip
def test_what_broke_is_told_apart_from_a_process_that_is_late(error, told):
    with (
        pytest.raises(RuntimeError if told is None else LostProcessError, match=told),
        steps_limited(World(1, 2), Patience(9)),
    ):
        raise error


@pytest.mark.parametrize(
    ("settings", "seconds", "told"),
    [
        ((600, False, 0), 600, "parallel.timeout_s"),
        ((600, True, 0), 1800, "the least with rollouts; parallel.timeout_s is 600"),
        ((2400, True, 0), 2400, "parallel.timeout_s"),
        ((600, True, 3600), 4200, "parallel.timeout_s + rollout.server_seconds"),
        ((600, True, 60), 1800, "the least with rollouts; parallel.timeout_s is 600"),
    ],
)
def test_ranks_wait_for_what_one_of_them_may_rightly_wait_for(settings, seconds, told):
    patience = patience_of(*settings)
    assert patience.seconds == seconds
    with (
        pytest.raises(LostProcessError, match=re.escape(f"within {seconds} s ({told}); start")),
        steps_limited(World(1, 2), patience),
    ):
        raise RuntimeError("Timed out waiting 4200000ms for recv operation to complete")


class LimitedError(Exception):
    """In place of a first step: how long its ranks would wait."""


def limited(_, seconds, saving):
    raise LimitedError(seconds, saving)


@pytest.mark.parametrize(
    ("overrides", "seconds"),
    [([], 1800), (['rollout.servers=["http://127.0.0.1:9"]', "rollout.server_seconds=7000"], 7600)],
)
def test_a_run_whose_samples_servers_draw_waits_for_them(tmp_path, monkeypatch, overrides, seconds):
    cfg = load_rlvr("tiny", overrides)
    loss = GRPOLoss(objective(cfg))
    trainer = Trainer(
        cfg, LM(cfg.model).init_weights(0), PolicySteps(cfg, {}, loss, tmp_path, World()), tmp_path, loss=loss
    )
    monkeypatch.setattr(World, "limit_waits", limited)
    with pytest.raises(LimitedError) as waits:
        trainer.fit()
    assert waits.value.args == (seconds, 600)


SLOW = {"train": {"tokens": 12 * 64}, "heldout": {"every_tokens": 0}, "checkpoint": {"every_tokens": 0}}


def test_the_slowest_rank_is_named_and_measured(launch, tmp_path):
    first, _ = launch(tmp_path / "run", "--slow", ranks=2, settings={**SLOW, "parallel": {"fsdp": False}})
    out, error = first.communicate(timeout=60)
    assert first.returncode == 0, error
    assert f"rank 1 on {HOST} is the slowest of 2: " in out
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    clocks = {line["step"]: line["clock"] for line in lines if line["kind"] == "train"}
    told = [step for step, clock in clocks.items() if "slowest_rank" in clock]
    assert told == [10]
    assert clocks[10]["slowest_rank"] == 1.0
    # Rank 0 waits while rank 1 sleeps, and that is not its own time.
    assert clocks[10]["slowest_rank_seconds"] - clocks[10]["fastest_rank_seconds"] > 0.1


ELSEWHERE = """
import sys
from pathlib import Path
from nano3.config.errors import UserError
from nano3.train import shared_folder
from nano3.train.world import init_world

world, base = init_world(), Path(sys.argv[1])
shared_folder.SECONDS = 0.2
for folder in (base / "shared" / "run", base / f"own-{world.rank}" / "run"):
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        shared_folder.check_shared(folder, world)
        print("the same")
    except UserError as error:
        print(error)
world.close()
"""


def test_a_run_folder_that_is_not_the_same_for_all_is_refused_at_once(processes, tmp_path):
    outputs = [rank.communicate(timeout=60) for rank in processes("-c", ELSEWHERE, str(tmp_path), ranks=2)]
    for rank, (out, error) in enumerate(outputs):
        same, refused = out.splitlines(), error
        assert len(same) == 2, refused
        assert same[0] == "the same"
        folder = tmp_path / f"own-{rank}" / "run"
        assert same[1] == (
            f"--out {folder}: what rank 0 on {HOST} writes there is not seen by rank 1 on {HOST}: "
            "give a folder on a file system that all processes share"
        )
    left = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*")}
    assert left == {"shared", "own-0", "own-1"}
