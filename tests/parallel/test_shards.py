"""What is told of a process that is not started: its part of the model, as it would really be."""

from __future__ import annotations

import json

import pytest

from nano3.cli import app
from nano3.config.presets import load_model
from nano3.parallel.layout import Layout
from nano3.parallel.shards import local_shape, parameter_shapes

NANO = load_model("nano3-30b-a3b")


@pytest.mark.parametrize(
    "layout",
    [
        Layout(shard=64, expert=8),
        Layout(1, 4, 64, 8),
        Layout(1, 4, 8, 8, tensor=8),
        Layout(2, 128, expert=8),
        Layout(shard=100),
    ],
    ids=["64", "256, sequences shared", "256, heads divided", "256, replicas", "100, uneven"],
)
def test_the_parts_of_all_processes_of_a_replica_are_the_model(layout):
    shapes, total = list(parameter_shapes(NANO)), 0
    for name, shape in shapes:
        parts = [local_shape(name, shape, layout, rank) for rank in range(layout.replica)]
        assert {part[1:] for part in parts if ".experts." not in name} <= {shape[1:]}
        total += sum(_size(part) for part in parts)
    assert total == 31_577_937_344


def _size(shape):
    n = 1
    for length in shape:
        n *= length
    return n


REAL = """
import json
import sys
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from nano3.config.presets import load_model
from nano3.config.schema import ParallelConfig
from nano3.model.lm import LM
from nano3.parallel.layout import layout_of
from nano3.parallel.plan import shard
from torch.distributed.device_mesh import init_device_mesh

found, cfg = [], load_model("tiny")
for rank, settings in json.loads(sys.argv[1]):
    dist.init_process_group("fake", rank=rank, world_size=8, store=FakeStore())
    with torch.device("meta"):
        model = LM(cfg)
    shard(model, layout_of(ParallelConfig(**settings), cfg, 8), init_device_mesh("cpu", (8,), mesh_dim_names=("data",)))
    found.append({name: list(p.to_local().shape) for name, p in model.named_parameters()})
    dist.destroy_process_group()
print(json.dumps(found))
"""


def test_the_parts_are_those_that_sharding_makes(processes):
    cases = [(rank, s) for s in ({}, {"expert": 4}, {"expert": 2, "replicate": 2}, {"expert": 8}) for rank in (0, 5, 7)]
    (started,) = processes("-c", REAL, json.dumps(cases), ranks=1)
    out, error = started.communicate(timeout=120)
    assert started.returncode == 0, error
    tiny = load_model("tiny")
    for (rank, settings), shapes in zip(cases, json.loads(out.splitlines()[-1]), strict=True):
        replicate, expert = settings.get("replicate", 1), settings.get("expert", 1)
        layout = Layout(replicate, 8 // replicate, 1, expert)
        for name, shape in parameter_shapes(tiny):
            own = local_shape(name, shape, layout, rank)
            # An empty part has no other sizes.
            assert tuple(shapes[name]) == own or _size(shapes[name]) == _size(own) == 0, (rank, settings, name)


@pytest.mark.parametrize(
    ("world", "context"), [(64, 8), pytest.param(256, 64, marks=pytest.mark.slow)], ids=["64", "256"]
)
def test_a_dry_run_tells_what_a_process_would_hold(capsys, world, context):
    command = ["extend-context", "--preset", "long-context", "--dry-run", "--json", "--world", str(world)]
    with pytest.raises(SystemExit) as ended:
        app.main([
            *command, "--rank", str(world - 1), "--set", f"parallel.context={context}", "--set", "parallel.expert=8"
        ])  # fmt: skip
    assert ended.value.code in (0, None)
    facts = json.loads(capsys.readouterr().out)["process"]
    assert [facts[key] for key in ("replicate", "shard", "context", "expert")] == [1, world // context, context, 8]
    assert facts["slices"] == [context - 1, context]
    assert facts["experts"] == [112, 128]
    assert facts["sequences_per_step"] == 48 * context // world
    assert facts["state_bytes"] == 16 * facts["parameters"]
    assert facts["state_bytes"] == pytest.approx(16 * 31_577_937_344 / world, rel=0.1)
    assert facts["memory_bytes"] > facts["state_bytes"]
    assert facts["replica_parameters"] == 31_577_937_344
    assert facts["step"]["blocks"] == "ME*"
    assert facts["step"]["collectives"] > 20


def test_a_dry_run_of_the_reports_own_arrangement(capsys):
    degrees = {"context": 8, "tensor": 8, "expert": 8, "pipeline": 4}
    command = ["extend-context", "--preset", "long-context", "--dry-run", "--json", "--world", "256", "--rank", "77"]
    with pytest.raises(SystemExit) as ended:
        app.main([*command, *(word for name, n in degrees.items() for word in ("--set", f"parallel.{name}={n}"))])
    assert ended.value.code in (0, None)
    facts = json.loads(capsys.readouterr().out)["process"]
    assert {name: facts[name] for name in degrees} == degrees
    # 77 = 64 + 8 + 5: of the second stage the second pair of slices, the sixth part of the heads and of the tokens.
    assert [facts[key] for key in ("replicate", "shard", "slices")] == [1, 1, [1, 14]]
    assert facts["heads"] == {"attention": [20, 24], "Mamba-2": [40, 48]}
    assert facts["sequences_per_step"] == 48
    assert facts["step"]["collectives"] > 20


def test_a_dry_run_of_copies_with_the_micro_batch_that_fits(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    command = ["pretrain", "--preset", "tiny", "--dry-run", "--json", "--set", "parallel.fsdp=false"]
    sizes = ["--set", "train.batch_size=8", "--set", "train.micro_batch_size=8"]
    found = {}
    for world in ("1", "4"):
        with pytest.raises(SystemExit):
            app.main([*command, *sizes, "--world", world])
        found[world] = json.loads(capsys.readouterr().out)["process"]
    assert [found[world]["micro_batch_size"] for world in found] == [8, 2]
    assert found["4"]["memory_bytes"] < found["1"]["memory_bytes"]
    assert found["4"]["parameters"] == found["1"]["parameters"]
    with pytest.raises(SystemExit):
        app.main([*command[:-3], *sizes, "--set", "parallel.fsdp=false", "--world", "4"])
    assert "in shards" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--world", "3", "--dry-run", "--set", "parallel.expert=2"], "parallel.expert is 2: "),
        (["--world", "3", "--dry-run"], "train.batch_size 4 cannot be shared evenly by 3 processes"),
        (["--world", "2"], "--world 2 is for a run that is not started: add --dry-run, or start torchrun"),
        (["--world", "2", "--dry-run", "--rank", "2"], "--rank 2: name one of 0 to 1"),
        (["--dry-run", "--rank", "1"], "--rank 1: name one of those of --world N"),
    ],
)
def test_processes_that_cannot_be_are_refused(options, error, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        app.main(["pretrain", *options])
    assert ended.value.code == 2
    assert error in capsys.readouterr().err
