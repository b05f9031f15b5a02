"""A run goes on with another arrangement of ranks, and leaves the same checkpoint and the same folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nano3.model.hf.folder import load
from nano3.train.tracking.metrics import without_clock

from .conftest import same_run

BALANCED = {"balance": {"loss_coef": 0.1, "bias_rate": 0.05}, "schedule": {"horizon_tokens": 384}}

AGAIN = """
import json
import sys
sys.path.insert(0, sys.argv[1])
import tiny_run as tiny
from pathlib import Path
from nano3.model.hf.folder import save
from nano3.parallel.layout import axes_of
from nano3.train.checkpoint.checkpointer import Checkpointer
from nano3.train.checkpoint.snapshot import state_tensors
from nano3.train.world import init_world

run_dir, settings = Path(sys.argv[2]), json.loads(sys.argv[3])
cfg = tiny.config(**settings)
world = init_world(axes_of(cfg.parallel))
run = tiny.trainer(run_dir, cfg, world=world)
assert run.resume() is not None
folder = Path(sys.argv[4])
again = Checkpointer(folder / "checkpoints", 2, False, world, print)
again.save(run.position.step, state_tensors(run.model, run.optimizer), {})
save(run.model, folder / "model")
run.feed.close()
world.close()
"""


@pytest.fixture
def loaded_again(processes, tmp_path):
    """Loads a run's last checkpoint on `ranks` processes; returns a folder with what these saved of it."""

    def run(run_dir, name, ranks=2, **settings):
        script = str(Path(__file__).parents[1] / "train")
        arguments = ["-c", AGAIN, script, str(run_dir), json.dumps(settings), str(tmp_path / name)]
        outputs = [process.communicate(timeout=300) for process in processes(*arguments, ranks=ranks)]
        assert (tmp_path / name / "model" / "config.json").exists(), outputs
        return tmp_path / name

    return run


LAYOUTS = {
    "divided experts": (2, {"expert": 2}),
    "divided and sharded experts": (4, {"expert": 2}),
    "replicas": (4, {"expert": 2, "replicate": 2}),
    "shared sequences": (2, {"context": 2}),
    "shared sequences and divided experts": (4, {"context": 2, "expert": 2}),
    "divided heads": (2, {"tensor": 2}),
    "divided heads, slices and experts": (4, {"tensor": 2, "context": 2, "expert": 2}),
    "stages": (2, {"pipeline": 2}),
    "sharded stages, two a process": (4, {"pipeline": 2, "schedule": "interleaved", "stages_per_rank": 2, "expert": 2}),
}
BY_DEFAULT = ("divided experts", "shared sequences", "divided heads")
HEADS = {"model": {"n_heads": 4, "n_kv_heads": 1, "mamba_n_heads": 2}}


@pytest.mark.parametrize(
    "layout", [name if name in BY_DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in LAYOUTS]
)
def test_state_is_the_same_bits_in_every_arrangement(finish, loaded_again, layout):
    """From one process into the arrangement and back again, moments included; and the folder that it exports."""
    ranks, parallel = LAYOUTS[layout]
    settings = {**BALANCED, **HEADS, "train": {"tokens": 192, "micro_batch_size": 1}}
    run = finish("one", **settings)
    there = loaded_again(run.folder, "there", ranks, **settings, parallel=parallel)
    first, second = run.state(3), run.at(there).state(3)
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert any(value.any() for name, value in first.items() if name.endswith("exp_avg_sq"))
    weights = load(there / "model").state_dict()
    assert all(torch.equal(value, first[f"model.{name}"]) for name, value in weights.items())


SHARED = {"parallel": {"context": 2}, "train": {"micro_batch_size": 1}}
HALF = {"train": {"micro_batch_size": 1, "tokens": 192}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("shared", "shared"),
        ("one", "shared"),
        ("shared", "one"),
        ("four", "shared"),
        ("heads", "heads"),
        ("heads", "one"),
    ],
    ids=lambda name: name,
)
def test_a_run_of_shared_sequences_goes_on_exactly(finish, first, then):
    """The same rows in the same order; where the arrangement stays, the same bits as without a stop."""
    settings = {**BALANCED, **HEADS}
    layouts = {
        "one": {"ranks": 1, **settings},
        "shared": {"ranks": 2, **settings, **SHARED},
        "four": {"ranks": 4, **settings, "parallel": {"context": 2, "expert": 2}},
        "heads": {"ranks": 2, **settings, "parallel": {"tensor": 2}},
    }
    half = {**layouts[first], **HALF}
    before = finish("run", **half)
    assert before.metrics[-1]["step"] == 3
    rest = {**layouts[then], "train": {"micro_batch_size": 1}}
    run, whole = finish("run", "--resume", **rest), finish("whole", **rest)
    if first != then:
        return same_run(run, whole, first_gradients=4)
    assert without_clock(run.metrics) == without_clock(whole.metrics)
    states = run.state(6), whole.state(6)
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    return None


@pytest.mark.slow
@pytest.mark.parametrize("way", ["from one to two", "from two to two"])
def test_a_run_goes_on_as_if_it_had_not_stopped(finish, way):
    divided, half = {"parallel": {"expert": 2}}, {"train": {"tokens": 192}}
    layout = {"ranks": 2, **divided} if "two to" in way else {}
    before = finish("run", **BALANCED, **half, **layout)
    assert before.metrics[-1]["step"] == 3
    run = finish("run", "--resume", ranks=2, **BALANCED, **divided)
    same_run(run, finish("one", **BALANCED), first_gradients=4)
