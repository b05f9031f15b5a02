"""Bounds of a GPU against sums done by hand, and `nano3 bench roofline` as a user types it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from nano3.bench.roofline.bounds import Load, bounds
from nano3.bench.roofline.gpus import GPUS, Gpu, choose_gpu
from nano3.bench.roofline.storage import storages
from nano3.cli.app import app, main
from nano3.config.model import ModelConfig
from nano3.config.presets import load_model
from nano3.model.hf.folder import save
from nano3.model.lm import LM
from nano3.quantize import int_folder, run
from nano3.quantize.policy import read_policy, select
from nano3.quantize.rows import CalibrationRows

REPORT = load_model("nano3-30b-a3b")
ATTENTION = ModelConfig(pattern="*", vocab_size=96, d_model=64, n_heads=4, n_kv_heads=2, head_dim=16)
PROJECTIONS, HEAD, NORMS = 64 * 16 * (4 + 2 + 2 + 4), 96 * 64, 2 * 64
KV = 2 * 2 * 16
"""Numbers that attention keeps for a token."""


def gpu(memory=1e9, bandwidth=1e9, flops=1e15, quick=0.0) -> Gpu:
    return Gpu("a", memory, bandwidth, flops, quick or flops, "")


def bound(cfg, device, load, policy="bf16", cache="bf16"):
    return next(b for b in bounds(cfg, device, load) if (b.policy, b.cache) == (policy, cache))


@pytest.mark.parametrize(
    ("policy", "folder", "token"),
    # 31.58e9 parameters; embeddings and output projection 352.3e6 each; 3.235e9 act on a token beside a row of the
    # embedding. Of int4 0.5625 bytes a number but for the embeddings, which stay bf16: 18.0 GB were these 1.0625 too.
    [("bf16", 63.17, 6.47), ("selective", 32.68, 3.98), ("everything", 32.31, 3.60), ("int8", 32.01, 3.26),
     ("int4", 18.0 + 0.3523 * (2 - 1.0625), 1.84)],
)  # fmt: skip
def test_bytes_of_the_reports_model(policy, folder, token):
    found = bound(REPORT, GPUS["h200"], Load(8192, 16384), policy)
    assert found.folder_bytes / 1e9 == pytest.approx(folder, rel=2e-3)
    assert found.token_bytes / 1e9 == pytest.approx(token, abs=0.008)


@pytest.mark.parametrize("policy", ["bf16", "selective", "everything", "int8", "int4"])
def test_weights_are_counted_as_the_folders_hold_them(policy, tmp_path):
    cfg = ModelConfig("ME*-M*E", 97, 64, n_heads=2, n_experts=3, d_expert=32, d_shared=64, d_ff=96, mamba_n_heads=2)
    save(LM(cfg).init_weights(1), tmp_path / "bf16", torch.bfloat16)
    out = tmp_path / policy
    if policy.startswith("int"):
        int_folder.quantize_folder(tmp_path / "bf16", out, 8 if policy == "int8" else 4)
    elif policy != "bf16":
        selection = select(cfg, read_policy([policy, "kv=bf16"]))
        run.quantize_folder(tmp_path / "bf16", out, selection, CalibrationRows([[1, 2, 3]]))
    stored = load_file(out / "model.safetensors").items()
    counted = {storage.policy: storage.folder for storage in storages(cfg)}
    # compressed-tensors notes the shape of each packed matrix, which nothing computes with.
    assert counted[policy] == sum(tensor.nbytes for name, tensor in stored if not name.endswith("weight_shape"))


def test_a_decoding_step_moves_weights_once_and_the_cache_of_every_sequence():
    found = bound(ATTENTION, gpu(memory=2e6), Load(100, 50))
    weights = 2 * (PROJECTIONS + HEAD + NORMS)
    folder = weights + 2 * HEAD
    assert (found.folder_bytes, found.sequence_bytes) == (folder, 150 * KV * 2)
    assert found.batch == (2e6 - folder) // (150 * KV * 2)
    past, new = (100 + 25) * KV * 2, KV * 2
    assert found.decode.bytes == pytest.approx(weights + found.batch * (2 * 64 + past + new))
    assert found.decode.seconds == pytest.approx(found.decode.bytes / 1e9)
    assert found.decode.rate == pytest.approx(found.batch / found.decode.seconds)
    assert found.decode.limit == found.prefill.limit == "bandwidth"


def test_states_are_read_and_written_back():
    cfg = ModelConfig(
        pattern="M", vocab_size=96, d_model=64, mamba_n_heads=2, mamba_head_dim=32, d_state=16, n_groups=1
    )
    states = 2 * 32 * 16 * 4 + (2 * 32 + 2 * 16) * 3 * 2
    found, sizes = bound(cfg, gpu(), Load(100, 50)), storages(cfg)[0]
    assert found.sequence_bytes == states
    weights = sizes.folder - 96 * 64 * 2
    assert found.decode.bytes == pytest.approx(weights + found.batch * (64 * 2 + 2 * states))
    assert found.prefill.bytes == pytest.approx(weights + found.batch * (100 * 64 * 2 + states))


def test_the_prefill_is_one_pass_and_a_request_is_both():
    found = bound(ATTENTION, gpu(memory=2e6, flops=1e9), Load(100, 50))
    tokens = found.batch * 100
    # All tokens through the projections (norms count as matrices), attention at the mean distance, the last logits.
    flops = tokens * (2 * (PROJECTIONS + NORMS) + 4 * 4 * 16 * 50) + found.batch * 2 * HEAD
    assert found.prefill.flops == pytest.approx(flops)
    assert found.prefill.limit == "compute"
    assert found.prefill.rate == pytest.approx(tokens / (flops / 1e9))
    seconds = found.prefill.seconds + 50 * found.decode.seconds
    assert found.request_seconds == pytest.approx(seconds)
    assert found.output_rate == pytest.approx(found.batch * 50 / seconds)


def test_what_is_multiplied_in_8_bits_goes_at_its_rate():
    # Everything in FP8 but the output projection; int8 has that too, int4 is multiplied in bf16.
    device = gpu(memory=2e6, flops=1e9, quick=4e9)
    rest = {p: bound(ATTENTION, device, Load(100, 50), p) for p in ("bf16", "everything", "int8", "int4")}
    for policy, quick in (("bf16", 0), ("everything", PROJECTIONS * 100), ("int8", PROJECTIONS * 100 + HEAD)):
        prefill = rest[policy].prefill
        eight = 2 * quick * rest[policy].batch
        assert prefill.seconds == pytest.approx(eight / 4e9 + (prefill.flops - eight) / 1e9)
    assert rest["int4"].prefill.rate == pytest.approx(rest["bf16"].prefill.rate)


def test_a_cache_of_fp8_holds_twice_the_tokens():
    wide, narrow = (bound(ATTENTION, gpu(memory=2e6), Load(100, 50), cache=cache) for cache in ("bf16", "fp8"))
    assert narrow.sequence_bytes == wide.sequence_bytes / 2
    assert narrow.batch == pytest.approx(2 * wide.batch, abs=1)


def test_more_memory_helps_where_memory_is_the_bound():
    load = Load(100, 50)
    little, more = (bound(ATTENTION, gpu(memory=m), load) for m in (150_000, 300_000))
    assert little.limit == "memory"
    assert more.output_rate > 1.1 * little.output_rate
    slow, plenty = (bound(ATTENTION, gpu(memory=m, flops=1e6), load) for m in (1e9, 4e9))
    assert slow.limit == "compute"
    assert plenty.output_rate == pytest.approx(slow.output_rate, rel=0.01)


def test_what_does_not_fit_has_no_rate():
    found = bound(REPORT, GPUS["l40s"], Load(8192, 16384))
    assert (found.batch, found.decode, found.output_rate, found.limit) == (0, None, 0.0, "memory")
    assert bound(REPORT, GPUS["l40s"], Load(8192, 16384), "selective").batch == 76


def test_a_model_that_4_bits_cannot_hold_or_without_a_cache():
    assert "int4" not in {b.policy for b in bounds(replace(ATTENTION, d_model=72), gpu(), Load(1, 1))}
    assert {b.cache for b in bounds(ModelConfig(pattern="ME"), gpu(1e12), Load(1, 1))} == {"bf16"}


def test_figures_of_ones_own_replace_published_ones():
    own = choose_gpu(None, 50, (2, 4), 24)
    assert (own.bandwidth, own.flops_16, own.flops_8, own.memory) == (50e9, 2e12, 4e12, 24e9)
    changed = choose_gpu("h100", memory=94, tflops=(835,))
    assert (changed.bandwidth, changed.flops_8, changed.memory) == (GPUS["h100"].bandwidth, 835e12, 94e9)
    assert changed.source == GPUS["h100"].source + "; TFLOP/s, memory given on the command line"


def test_the_command_prints_tables_and_writes_files(tmp_path):
    arguments = ["bench", "roofline", "--isl", "8k", "--osl", "16K", "--out", str(tmp_path / "new")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    for words in (
        "NVIDIA H200 SXM",
        "datasheet",
        "batch = (memory - weights)",
        "selective FP8",
        "measured by the report's",
    ):
        assert words in done.output
    found = json.loads((tmp_path / "new" / "result.json").read_text())
    assert found["load"] == {"isl": 8192, "osl": 16384}
    assert len(found["bounds"]) == 10
    assert found["bounds"][0]["ratio"] == 1
    assert (tmp_path / "new" / "roofline.png").read_bytes().startswith(b"\x89PNG")


def test_what_the_report_measured_is_beside_its_own_model_alone():
    done = CliRunner().invoke(app, ["bench", "roofline", "--model", "tiny", "--gpu", "L40S", "--json"])
    assert json.loads(done.stdout)["report_measured"] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpu", "h20"], ["--gpu h20", "did you mean 'h200'", "l40s"]),
        (["--isl", "8q"], ["--isl", "'8q'", "8k"]),
        (["--osl", "0"], ["--osl", "'0'"]),
        (["--tflops", "fast"], ["--tflops fast"]),
        (["--tflops", "1,2,3"], ["--tflops", "BF16,8BIT"]),
        (["--memory", "-1"], ["--memory: -1"]),
        (["--bandwidth", "nan"], ["--bandwidth: nan"]),
        (["--model", "nowhere"], ["nowhere"]),
        (["--out", __file__], [__file__]),
    ],
)
def test_a_wrong_input_is_one_line(arguments, words, capsys):
    with pytest.raises(SystemExit) as end:
        main(["bench", "roofline", *arguments])
    assert end.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert all(word in line for word in words)
