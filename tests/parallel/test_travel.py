"""How weights and gradients travel between shards: their types, how often, and what that changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nano3.cli import app
from nano3.config.errors import UserError
from nano3.config.presets import load_pretrain, load_sft
from nano3.config.sections.parallel import ParallelConfig
from nano3.parallel.layout import layout_of
from nano3.parallel.precision import precision_of
from nano3.stages.settings import check_parallel
from nano3.train.parallel import parallelize
from nano3.train.tracking.metrics import without_clock
from nano3.train.world import World

from ..forked import start_ranks

STEPS = """
import json
import sys
sys.path.insert(0, sys.argv[1])
import tiny_run as tiny
import torch
import torch.distributed as dist
from nano3.config.sections.parallel import ParallelConfig
from nano3.model.lm import LM
from nano3.train.loss import NextTokenLoss, Scale
from nano3.train.parallel import parallelize
from nano3.train.world import init_world

world, sent, found = init_world(), [], []

def recorded(name):
    call = getattr(dist, name)
    def record(output, input, *args, **options):
        sent.append((name.split("_")[1], str(input.dtype), input.nbytes))
        return call(output, input, *args, **options)
    setattr(dist, name, record)

recorded("all_gather_single")
reduce = dist.reduce_scatter_single
def record_reduce(output, input, *args, **options):
    sent.append(("scatter", str(input.dtype), input.nbytes))
    return reduce(output=output, input=input, *args, **options)
dist.reduce_scatter_single = record_reduce

for settings in json.loads(sys.argv[2]):
    model = LM(tiny.MODEL)
    model.init_weights(0)
    model.compute_dtype = torch.bfloat16
    parallelize(model, world, ParallelConfig(**settings))
    seen = {}
    def look(module, args):
        seen.update({name: str(p.dtype) for name, p in module.named_parameters()})
    for block in model.blocks:
        block.mixer.register_forward_pre_hook(look)
    sent.clear()
    parts = NextTokenLoss(0.1)(model, tiny.TinySource().batch(2 * world.rank, 2), Scale(64, 2))
    in_forward = len(sent)
    parts.total.backward()
    gradients = {name: tiny.whole(p.grad).flatten().tolist() for name, p in model.named_parameters()}
    kept = sorted({str(p.grad.dtype) for p in model.parameters()} | {str(p.dtype) for p in model.parameters()})
    found.append({"seen": seen, "sent": sent[:], "in_forward": in_forward, "loss": parts.total.item(), "kept": kept})
    found[-1]["gradients"] = gradients
if world.is_main:
    print(json.dumps(found), flush=True)
world.close()
"""
CASES = {
    "float32": {},
    "narrow": {"gather_dtype": "bfloat16"},
    "narrow, experts divided": {"gather_dtype": "bfloat16", "expert": 2},
    "narrow sums": {"gather_dtype": "bfloat16", "reduce_dtype": "bfloat16"},
    "kept": {"reshard_after_forward": False},
}
WIDE = ("A_log", "D", "dt_bias", "norm.weight", "conv1d.weight", "conv1d.bias", "gate.weight", "norm_f.weight")


def _steps(cases, ranks):
    """What one step on so many ranks sent and computed, in each case."""
    script = str(Path(__file__).parents[1] / "train")
    started = start_ranks("-c", STEPS, script, json.dumps(list(cases.values())), ranks=ranks)
    outputs = [process.communicate(timeout=120) for process in started]
    assert started[0].returncode == 0, outputs
    return dict(zip(cases, json.loads(outputs[0][0].splitlines()[-1]), strict=True))


@pytest.fixture(scope="module")
def steps():
    """On two ranks, in each of CASES."""
    return _steps(CASES, 2)


def _sent(step, kind):
    return {dtype.removeprefix("torch.") for what, dtype, _ in step["sent"] if what == kind}


def _bytes(step, kind):
    return sum(size for what, _, size in step["sent"] if what == kind)


def test_everything_travels_in_float32_on_cpus(steps):
    assert _sent(steps["float32"], "gather") == _sent(steps["float32"], "scatter") == {"float32"}


@pytest.mark.parametrize("case", ["narrow", "narrow, experts divided"])
def test_projections_and_experts_are_gathered_in_bfloat16_and_nothing_else_is(steps, case):
    step = steps[case]
    assert _sent(step, "gather") == {"bfloat16", "float32"}
    assert _sent(step, "scatter") == {"float32"}
    assert step["kept"] == ["torch.float32"]
    for name, dtype in step["seen"].items():
        assert dtype == ("torch.float32" if name.endswith(WIDE) else "torch.bfloat16"), name
    assert _bytes(steps["narrow"], "gather") < 0.75 * _bytes(steps["float32"], "gather")


@pytest.mark.parametrize("case", ["narrow", "narrow, experts divided", "narrow sums"])
def test_the_forward_pass_is_the_same_bits_and_gradients_are_rounded_once(steps, case):
    step, wide = steps[case], steps["float32"]
    same = step["loss"] == wide["loss"]
    assert same or "divided" in case  # results of experts are added in another order
    assert step["loss"] == pytest.approx(wide["loss"], rel=1e-2)
    for name, values in wide["gradients"].items():
        found, expected = torch.tensor(step["gradients"][name]), torch.tensor(values)
        assert (found - expected).norm() <= 0.02 * expected.norm() + 1e-6, name


def test_sums_in_bfloat16_leave_out_routers_and_norms(steps):
    step = steps["narrow sums"]
    assert _sent(step, "scatter") == {"bfloat16", "float32"}
    for name, values in step["gradients"].items():
        gradient = torch.tensor(values)
        rounded = torch.equal(gradient, gradient.bfloat16().float())
        assert rounded != (name.endswith(WIDE) or "embeddings" in name), name
    assert step["kept"] == ["torch.float32"]


def test_weights_that_are_kept_are_gathered_once(steps):
    kept, freed = steps["kept"], steps["float32"]
    assert kept["in_forward"] == freed["in_forward"]
    count = [sum(what == "gather" for what, *_ in step["sent"]) for step in (kept, freed)]
    assert count == [kept["in_forward"], 2 * kept["in_forward"] - 1]  # all but the root, which is kept in any case
    assert kept["loss"] == freed["loss"]


REPLICAS = {
    "float32": {"replicate": 2},
    "narrow": {"replicate": 2, "gather_dtype": "bfloat16"},
    "narrow sums": {"replicate": 2, "expert": 2, "gather_dtype": "bfloat16", "reduce_dtype": "bfloat16"},
}


@pytest.mark.slow
def test_replicas_gather_and_sum_in_the_same_types():
    found = _steps(REPLICAS, 4)
    assert _sent(found["float32"], "gather") == {"float32"}
    assert _sent(found["narrow"], "gather") == _sent(found["narrow sums"], "scatter") == {"bfloat16", "float32"}
    assert found["narrow"]["loss"] == found["float32"]["loss"]
    for name, values in found["float32"]["gradients"].items():
        expected = torch.tensor(values)
        for case in ("narrow", "narrow sums"):
            difference = torch.tensor(found[case]["gradients"][name]) - expected
            assert difference.norm() <= 0.03 * expected.norm() + 1e-6, (case, name)


@pytest.mark.slow
def test_a_run_that_keeps_gathered_weights_is_the_run_that_frees_them(finish):
    kept, freed = (finish(str(free), ranks=2, parallel={"reshard_after_forward": free}) for free in (False, True))
    assert without_clock(kept.metrics) == without_clock(freed.metrics)
    states = kept.state(6), freed.state(6)
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        (
            {"gather_dtype": "bfloat16"},
            r"gather_dtype is bfloat16 with .*fsdp = false, .*--set parallel.gather_dtype=auto",
        ),
        ({"reduce_dtype": "bfloat16"}, r"reduce_dtype is bfloat16 with .*--set parallel.reduce_dtype=float32"),
        ({"reshard_after_forward": False}, r"after_forward is false with .*--set parallel.reshard_after_forward=auto"),
        ({"offload": True}, r"parallel.offload is true with .*--set parallel.offload=false"),
    ],
)
def test_copies_have_no_shards_that_travel(settings, error):
    cfg = load_pretrain("tiny", [])
    layout_of(ParallelConfig(**settings), cfg.model, 2)
    with pytest.raises(UserError, match=error):
        layout_of(ParallelConfig(fsdp=False, **settings), cfg.model, 2)


def test_weights_are_not_rounded_on_the_way_where_float32_computes():
    narrow = ParallelConfig(gather_dtype="bfloat16")
    with pytest.raises(UserError, match=r"computes in float32: .*--set train.dtype=bfloat16"):
        precision_of(narrow, torch.float32, torch.device("cpu"))
    assert precision_of(narrow, torch.bfloat16, torch.device("cpu")).gather == torch.bfloat16
    auto = [precision_of(ParallelConfig(), torch.bfloat16, torch.device(name)).gather for name in ("cpu", "cuda")]
    assert auto == [torch.float32, torch.bfloat16]
    assert precision_of(ParallelConfig(), torch.float32, torch.device("cuda")).gather == torch.float32


def test_main_memory_is_no_place_to_offload_to_from_the_cpu(small_model):
    with pytest.raises(UserError, match=r"this run computes on the CPU, .*--set parallel.offload=false"):
        parallelize(small_model, World(), ParallelConfig(offload=True))


@pytest.mark.parametrize("name", ["gather_dtype", "reduce_dtype"])
def test_types_on_the_way_need_a_newer_pytorch(name, monkeypatch, tmp_path):
    record = tmp_path / "torch-2.12.1.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.12.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    check_parallel(load_sft("tiny", [f"parallel.{name}=float32"]), 2)
    with pytest.raises(UserError, match=rf"parallel.{name} is bfloat16: it needs PyTorch 2.13 or newer"):
        check_parallel(load_sft("tiny", [f"parallel.{name}=bfloat16"]), 2)


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ("timeout_s=0", "parallel.timeout_s is 0; it must be at least 1"),
        ("gather_dtype=bf16", "'parallel.gather_dtype' must be one of 'auto', 'bfloat16', 'float32', not 'bf16'"),
        ("reshard_after_forward=yes", "'parallel.reshard_after_forward' must be one of 'auto', true, false, not 'yes'"),
        ("reshard_after_forward=1", "must be one of 'auto', true, false, not 1"),
    ],
)
def test_values_that_are_none_are_refused(setting, error, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        app.main(["pretrain", "--set", f"parallel.{setting}", "--dry-run"])
    assert ended.value.code == 2
    assert error in capsys.readouterr().err
