"""A step without numbers of one process of many: it goes through where all fits, and says where it does not."""

from __future__ import annotations

import sys

import pytest
from torch import nn

from nano3.config.errors import UserError
from nano3.config.presets import load_model
from nano3.config.sections.parallel import ParallelConfig
from nano3.model.moe import Experts
from nano3.parallel import fake_step as module
from nano3.parallel.fake_step import fake_step
from nano3.parallel.layout import layout_of

TINY = load_model("tiny")
LAYOUTS = {
    "shards": (2, {}),
    "copies": (2, {"fsdp": False}),
    "experts": (4, {"expert": 2, "replicate": 2}),
    "stages": (4, {"pipeline": 2, "expert": 2}),
    "heads": (4, {"tensor": 4, "expert": 2}),
    "heads of copies": (2, {"tensor": 2, "fsdp": False}),
    "heads of slices": (8, {"tensor": 2, "context": 2, "pipeline": 2, "expert": 4}),
    "slices": (4, {"context": 2, "expert": 4, "reshard_after_forward": False}),
}


def run(size, settings, rank=None, recompute=False):
    cfg = ParallelConfig(**settings)
    return fake_step(TINY, cfg, layout_of(cfg, TINY, size), size - 1 if rank is None else rank, recompute)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_step_goes_through_every_kind_of_block(name):
    step = run(*LAYOUTS[name])
    assert sorted(step.blocks) == sorted(set(TINY.pattern))
    assert (step.collectives > 0) == (name != "copies")


def test_recomputation_gathers_no_more_and_exchanges_tokens_once_more():
    # Of each exchange the forward pass has two parts: tokens there, and results back.
    counts = [run(4, {"expert": 4}, recompute=recompute).collectives for recompute in (False, True)]
    assert counts[1] == counts[0] + 2


@pytest.mark.parametrize("name", ["shards", "experts"])
def test_a_width_that_does_not_fit_is_found(name, monkeypatch):
    class Narrow(Experts):
        def __init__(self, cfg):
            super().__init__(cfg)
            self.down_proj = nn.Parameter(self.down_proj.detach()[..., :-8].contiguous())

    monkeypatch.setattr("nano3.model.moe.Experts", Narrow)
    with pytest.raises(UserError, match=r"^a step of process \d does not fit: .*(mat|dim|size|shape)[^\n]*$"):
        run(*LAYOUTS[name])


def test_a_part_of_another_size_than_is_foreseen_is_found(monkeypatch):
    monkeypatch.setattr(module, "shard", lambda *arguments: None)  # nothing is sharded
    with pytest.raises(UserError, match=r"process 1 holds [\d,]+ parameters of \S+, where [\d,]+ are foreseen"):
        run(*LAYOUTS["shards"])


MEASURED = """
import resource
import sys
from nano3.cli import app
try:
    app.main(sys.argv[1:])
except SystemExit as ended:
    assert not ended.code, ended.code
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("world", "rank"), [("64", "0"), ("256", "255")])
def test_the_whole_model_on_many_processes_takes_less_than_a_gibibyte(processes, world, rank):
    command = ["pretrain", "--preset", "phase1", "--dry-run", "--world", world, "--rank", rank]
    (process,) = processes("-c", MEASURED, *command, "--set", "parallel.expert=8")
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert "31,577,937,344" in out
    assert "sizes fit together" in out
    assert "tokens for experts" in out
    if sys.platform == "linux":
        assert int(out.splitlines()[-1]) < 1 << 20
