"""Processes along axes beside data: what is summed over whom."""

import json
from pathlib import Path

import pytest
import torch

from nano3.model.lm import LM
from nano3.train.checkpoint.checkpointer import load_tensors
from nano3.train.heldout import evaluate
from nano3.train.tracking.metrics import read_metrics, without_clock
from nano3.train.world import World

pytestmark = pytest.mark.any_isa

BEGIN = """
import torch
from torch import nn
from torch.distributed.tensor import Shard, distribute_tensor
from nano3.config.errors import UserError
from nano3.train.optimizer import clip_gradients, gradient_norm
from nano3.train.step import count
from nano3.train.world import init_world

class Batch:
    n_tokens, n_targets, tokens = 10, 5, torch.zeros(1, 10)

def report(action):
    try:
        print(action())
    except (UserError, RuntimeError) as error:
        print(type(error).__name__, error)
"""

FOUR = """
report(lambda: init_world({"copies": 3}))
world = init_world({"context": 2})
print(world.data.rank, world.data.size, world.loss.size, world.loss.sum(torch.ones(())).item())
mesh, whole = world.mesh, torch.arange(1.0, 5.0)
parameters = [nn.Parameter(distribute_tensor(whole.clone(), mesh[name], [Shard(0)])) for name in ("data", "context")]
parameters.append(nn.Parameter(whole.clone()))
for parameter in parameters:
    parameter.grad = parameter.detach().clone()
norm = gradient_norm(parameters)
print(round(norm.item() ** 2, 3))
clip_gradients(parameters, norm, 1.0)
print(round(gradient_norm(parameters).item(), 3))
totals = count([Batch, Batch], world, lambda length: 3.0)
print(totals.targets, totals.tokens, totals.micro_batches, totals.flops)
report(lambda: count([Batch] * (1 + (world.rank == 3)), world))
report(lambda: count([], world, error=RuntimeError("engine died") if world.rank == 1 else None))
world.close()
"""


def test_sums_go_over_the_ranks_of_the_loss_and_norms_over_each_mesh(processes):
    started = processes("-c", BEGIN + FOUR, ranks=4)
    outputs = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0] * 4, outputs
    lines = [out.splitlines() for out, _ in outputs]
    assert [rank.pop(0) for rank in lines] == ["UserError 4 processes do not divide into copies 3"] * 4
    assert [rank[0] for rank in lines] == ["0 2 4 4.0", "0 2 4 4.0", "1 2 4 4.0", "1 2 4 4.0"]
    for rank in lines:
        # Three times 1 + 4 + 9 + 16.
        assert rank[1:4] == ["90.0", "1.0", "40 80 4 240.0"]
        assert rank[4].startswith("UserError ranks have different numbers of micro-batches in a step (1, 1, 1, 2)")
    assert [rank[5] for rank in lines] == [
        f"{kind} engine died" for kind in ("UserError", "RuntimeError", *["UserError"] * 2)
    ]


EIGHT = """
world = init_world({"pipeline": 2, "context": 2, "tensor": 2})
names = ("data", "context", "tensor", "sequence", "loss", "pipeline")
print(*(sorted(getattr(world, name).gather(world.rank)) for name in names), sep="; ")
print(world.loss_mesh().mesh.tolist())
world.close()
"""


def test_ranks_that_divide_heads_are_neighbours_and_share_sequences_with_those_of_other_slices(processes):
    started = processes("-c", BEGIN + EIGHT, ranks=8)
    outputs = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0] * 8, outputs
    for rank, (out, _) in enumerate(outputs):
        half = [0, 1, 2, 3] if rank < 4 else [4, 5, 6, 7]
        groups = [sorted({rank, rank ^ bit}) for bit in (0, 2, 1)] + [half, half, sorted({rank, rank ^ 4})]
        assert out.splitlines() == ["; ".join(map(str, groups)), str(half)]


@pytest.mark.parametrize(
    ("fsdp", "ranks"),
    [
        pytest.param(True, 1, id="fsdp"),
        pytest.param(True, 2, id="fsdp of two", marks=pytest.mark.slow),
        pytest.param(False, 2, id="copies of two", marks=pytest.mark.slow),
    ],
)
def test_ranks_that_share_their_data_count_once(tiny, complete, tmp_path, fsdp, ranks):
    """`ranks`: that have data of their own; twice as many share them."""
    settings = {"parallel": {"fsdp": fsdp}, "balance": {"loss_coef": 0.1}}
    if ranks == 1:
        tiny.trainer(tmp_path / "alone", tiny.config(**settings)).fit()
    else:
        complete(tmp_path / "alone", ranks=ranks, settings=settings)
    complete(tmp_path / "pairs", "--axes", json.dumps({"copies": 2}), ranks=2 * ranks, settings=settings)
    alone, pairs = (without_clock(read_metrics(tmp_path / name / "metrics.jsonl")) for name in ("alone", "pairs"))
    assert len(alone) > 6
    assert pairs == alone
    names = tiny.trainer(tmp_path / "none").model.state_dict()
    states = []
    for name in ("alone", "pairs"):
        empty = {f"model.{key}": torch.zeros_like(value) for key, value in names.items()}
        states.append(load_tensors(tmp_path / name / "checkpoints" / "step-6", empty, World()))
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


ALIKE = """
import sys
sys.path.insert(0, sys.argv[1])
import tiny_run as tiny
from pathlib import Path
from nano3.train.loss import NextTokenLoss
from nano3.train.step import NonFiniteError, run_step
from nano3.train.tally import Tally

class Poisoned(NextTokenLoss):
    def __call__(self, model, batch, scale):
        parts = super().__call__(model, batch, scale)
        parts.total = parts.total * (float("nan") if world.rank == 1 else 1.0)
        return parts

world = init_world({"copies": 2})
part = {"kl": (torch.tensor(4.0), 2.0)} if world.rank == 1 else {}
print(Tally(world).add_up([part], torch.zeros(1, dtype=torch.float64))[0])
for loss in (NextTokenLoss(0.0), Poisoned(0.0)):
    run = tiny.trainer(Path(sys.argv[2]), world=world, heldout=None, loss=loss)
    batches = run.feed.source.step(0)
    report(lambda: run_step(run.recipe, batches, lambda: world.rank == 0).stop)
    run.feed.close()
world.close()
"""


def test_ranks_that_share_their_data_take_every_decision_alike(processes, tmp_path):
    started = processes("-c", BEGIN + ALIKE, str(Path(__file__).parent), str(tmp_path), ranks=2)
    outputs = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    lines = [out.splitlines() for out, _ in outputs]
    assert [rank[0] for rank in lines] == ["{}", "{'kl': 2.0}"]
    assert [rank[1] for rank in lines] == ["True", "True"]
    assert all(rank[2].startswith("NonFiniteError loss ") and "doc-" in rank[2] for rank in lines)


HELDOUT = """
import sys
import warnings
warnings.simplefilter("error", UserWarning)
sys.path.insert(0, sys.argv[1])
import tiny_run as tiny
from nano3.model.lm import LM
from nano3.parallel.context import SharedSequences
from nano3.train.heldout import evaluate
world = init_world({"context": 2})
print(world.loss.size, world.loss_mesh().size(), world.loss_mesh().mesh_dim_names)
for shared in (None, SharedSequences(world.context.handle)):
    score = evaluate(LM(tiny.MODEL).init_weights(0), tiny.TinySource(8), 5, 2, world, shared=shared)
    print(score.targets, score.bytes, round(score.bits_per_byte, 4))
world.close()
"""


def test_ranks_that_share_each_sequence_score_it_once_and_mesh_without_warnings(tiny, processes):
    started = processes("-c", BEGIN + HELDOUT, str(Path(__file__).parent), ranks=2)
    outputs = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    alone = evaluate(LM(tiny.MODEL).init_weights(0), tiny.TinySource(8), 5, 2, World())
    line = f"{alone.targets} {alone.bytes} {alone.bits_per_byte:.4f}"
    assert [out.splitlines() for out, _ in outputs] == [["2 2 ('loss',)", line, line]] * 2


SOURCES = """
import json
import sys
sys.path.insert(0, sys.argv[1])
import tiny_run as tiny
from pathlib import Path

world, folder = init_world(), Path(sys.argv[2])

class Source:
    ahead = False

    def __init__(self, state):
        self.inner, self.now = tiny.text(tiny.config(), world), state

    def step(self, n):
        return self.inner.step(n)

    def state(self):
        return self.now()

    def restore(self, state):
        print(json.dumps(state))

    def close(self):
        pass

def run(name, state, resume=False, shared=False):
    cfg = tiny.config(train={"tokens": 64}, schedule={"horizon_tokens": 384})
    source = Source(state)
    source.shared_state = shared
    run = tiny.trainer(folder / name, cfg, source, world=world, heldout=None)
    try:
        run.resume() if resume else run.fit()
    except (UserError, ZeroDivisionError) as error:
        print(type(error).__name__, error)
    run.feed.close()
"""
ALONE = """
run("own", lambda: {"drawn": 3})
run("shared", lambda: {"drawn": 3}, shared=True)
run("none", dict)
"""
TWO = """
run("own", dict, resume=True)
run("shared", dict, resume=True)
run("none", dict, resume=True)
run("set", lambda: {"x": {1} if world.rank else 1})
run("dead", lambda: {"x": 1 / (1 - world.rank)})
world.close()
"""


def test_a_sources_state_is_handed_to_the_ranks_whose_it_is_and_fails_on_all(processes, tmp_path, monkeypatch):
    arguments = ["-c", str(Path(__file__).parent), str(tmp_path)]
    monkeypatch.setattr("sys.argv", arguments)
    monkeypatch.syspath_prepend(arguments[1])
    exec(BEGIN + SOURCES + ALONE, {})
    started = processes("-c", BEGIN + SOURCES + TWO, *arguments[1:], ranks=2)
    outputs = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    lines = [out.splitlines() for out, _ in outputs]
    for rank in lines:
        assert rank[0].startswith("CheckpointError")
        assert "state of 1 rank, and this run has 2: resume it with 1" in rank[0]
        assert rank[1:3] == ['{"drawn": 3}', "{}"]
        assert "UserError the training data's state 'x' is neither a tensor nor JSON" in rank[3]
    assert [rank[4] for rank in lines] == ["UserError division by zero", "ZeroDivisionError division by zero"]
