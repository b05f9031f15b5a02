"""Every op of nano3.kernels, timed at small sizes."""

import json
from dataclasses import replace

import pytest
import torch
from nano3.kernels import dispatch
from nano3.kernels.dispatch import ops
from nano3.kernels.eager import FUNCTIONS as EAGER
from typer.testing import CliRunner

from nano3 import kernels
from nano3.bench.device.ceilings import DeviceCeilings
from nano3.bench.kernels.cases import CPU, DECODING, Maker, Sizes
from nano3.bench.kernels.measure import BOTH, _figures, _run
from nano3.bench.kernels.report import rows
from nano3.cli.bench.app import app
from nano3.config.errors import UserError
from nano3.config.presets import load_model

CFG = load_model("tiny")
SIZES = Sizes(tokens=24, sequences=3, context=70)


@pytest.mark.parametrize("op", ops())
def test_every_op_has_a_case_that_all_backends_take(op):
    case = Maker(CFG, SIZES, torch.float32, 0).make(op)
    assert case.op == op
    assert case.flops > 0
    assert case.bytes >= sum(leaf.nbytes for leaf in case.leaves)
    assert bool(case.leaves) == (op not in DECODING)
    for backend in kernels.backends(op, "cpu"):
        case.run(backend=backend)


@pytest.mark.parametrize("op", [op for op in ops() if op not in DECODING])
def test_every_other_op_has_a_backward_pass_by_all_backends(op):
    case = Maker(CFG, SIZES, torch.float32, 0).make(op)
    for backend in kernels.backends(op, "cpu"):
        _run(case, BOTH, backend)()


def test_work_is_counted_by_hand():
    make = Maker(CFG, SIZES, torch.bfloat16, 0)
    linear = make.make("linear")
    O, I = CFG.d_in_proj, CFG.d_model
    assert linear.flops == 2 * 24 * O * I
    assert linear.bytes == 2 * (24 * I + O * I + 24 * O)
    assert linear.gradient_bytes == 2 * (2 * (24 * I + O * I) + 24 * O)
    paged = make.make("paged_attention")
    assert paged.flops == 4 * CFG.n_heads * CFG.head_dim * 3 * 70


def test_shares_are_of_the_ceiling_that_binds():
    case = Maker(CFG, SIZES, torch.float32, 0).make("linear")
    rates = {"matmul_float32": case.flops, "read_256_KiB": 4.0 * case.bytes}
    found = _figures(case, "forward", {"cpu": [2.0, 4.0, 2.0], "eager": [8.0]}, rates, torch.float32)
    assert (found["roofline_seconds"], found["bound"]) == (1.0, "compute")
    assert found["sides"]["cpu"]["share_of_roofline"] == 0.5
    assert found["sides"]["eager"]["share_of_roofline"] == 0.125
    memory = _figures(case, "forward", {"cpu": [2.0]}, rates | {"read_256_KiB": case.bytes / 2}, torch.float32)
    assert (memory["roofline_seconds"], memory["bound"]) == (2.0, "memory")
    both = _figures(case, "forward and backward", {"cpu": [3.0]}, rates, torch.float32)
    assert both["flops"] == 3 * case.flops
    shown = list(rows({"cases": [found]}))
    assert [row[:2] for row in shown] == [("linear", "cpu"), ("", "eager")]
    assert shown[1][3] == "4.00"
    assert next(rows({"cases": [both]}))[0] == "linear, forward and backward"
    assert list(rows({"cases": [found, both]}))[2][0] == "  and backward"


def test_the_verb_from_outside(tmp_path, monkeypatch):
    monkeypatch.setattr("nano3.bench.ceilings.MATMUL", 128)
    monkeypatch.setattr("nano3.bench.ceilings.largest_bytes", lambda cache, free: 1 << 20)
    monkeypatch.setattr("nano3.bench.kernels.measure.AT_A_TIME", 0.001)
    args = ["kernels", "--model", "tiny", "--op", "rms_norm,ssd_step", "--op", "attention", "--tokens", "16"]
    done = CliRunner().invoke(app, [*args, "--repeat", "2", "--json", "--threads", "1", "--out", str(tmp_path / "o")])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "o" / "result.json").read_text())
    assert [case["name"] for case in found["cases"]] == [
        "rms_norm, forward", "rms_norm, forward and backward", "ssd_step, forward", "attention, forward",
        "attention, forward and backward",
    ]  # fmt: skip
    for case in found["cases"]:
        assert {"eager", "reference"} <= case["sides"].keys()
        for side in case["sides"].values():
            assert len(side["seconds"]["all"]) == 2
            assert side["flops_per_second"] * side["seconds"]["median"] == pytest.approx(case["flops"])
            assert side["share_of_roofline"] * side["seconds"]["median"] == pytest.approx(case["roofline_seconds"])
    assert (tmp_path / "o" / "kernels.png").stat().st_size > 5000


@pytest.mark.parametrize("op", ["ssd_scan", "causal_conv1d", "attention"])
def test_documents_are_kept_apart_and_count_as_less_work(op):
    whole, cut = (Maker(CFG, replace(SIZES, tokens=50, documents=n), torch.float32, 0).make(op) for n in (1, 3))
    one, other = (case.run(backend="eager") for case in (whole, cut))
    one, other = (result[0] if isinstance(result, tuple) else result for result in (one, other))
    torch.testing.assert_close(one[:, :17], other[:, :17])
    assert not torch.allclose(one[:, 17], other[:, 17])  # the first token of the second document
    assert cut.flops <= whole.flops
    if op == "attention":
        per_pair = 4 * CFG.n_heads * CFG.head_dim
        assert cut.flops == per_pair * (2 * 17 * 18 / 2 + 16 * 17 / 2)


def test_a_backend_that_fails_is_named_and_the_others_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("nano3.bench.kernels.measure._ceilings", lambda *_: DeviceCeilings(CPU, 64, 1 << 20))
    monkeypatch.setattr("nano3.bench.kernels.measure.AT_A_TIME", 0.001)

    def broken(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory\nand more")

    monkeypatch.setitem(EAGER, "rms_norm", broken)
    monkeypatch.setattr(dispatch, "_chosen", dispatch._chosen.__wrapped__)  # which keeps functions
    args = ["kernels", "--model", "tiny", "--op", "rms_norm", "--tokens", "16", "--repeat", "1", "--forward-only"]
    done = CliRunner().invoke(app, [*args, "--out", str(tmp_path / "o")])
    assert done.exit_code == 0, done.output
    assert "rms_norm, forward, eager: OutOfMemoryError: CUDA out of memory" in done.output
    case = json.loads((tmp_path / "o" / "result.json").read_text())["cases"][0]
    assert "reference" in case["sides"]
    assert "eager" not in case["sides"]


def test_more_documents_than_tokens_is_one_line():
    done = CliRunner().invoke(app, ["kernels", "--model", "tiny", "--tokens", "8", "--documents", "9"])
    assert isinstance(done.exception, UserError)
    assert "--documents 9: there are 8 tokens to cut" in str(done.exception)


@pytest.mark.gpu
def test_on_a_gpu_every_op_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("nano3.bench.kernels.measure.AT_A_TIME", 0.001)
    sizes = ["--tokens", "300", "--documents", "3", "--sequences", "3", "--context", "70"]
    args = ["kernels", "--model", "tiny", "--device", "cuda", "--repeat", "1", *sizes, "--out", str(tmp_path / "o")]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "o" / "result.json").read_text())
    assert {case["op"] for case in found["cases"]} == set(ops())
    assert [case["failed"] for case in found["cases"] if case["failed"]] == []
    assert found["machine"]["device"]


def test_an_op_that_is_none_is_one_line():
    done = CliRunner().invoke(app, ["kernels", "--model", "tiny", "--op", "softmax"])
    assert isinstance(done.exception, UserError)
    assert "--op softmax: no such op; ops: linear" in str(done.exception)
