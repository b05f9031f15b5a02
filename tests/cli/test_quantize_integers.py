"""`nano3 quantize --int8` and `--int4`: the folder that comes of it, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nano3.config.presets import load_model as load_preset
from nano3.model.hf.folder import load, save
from nano3.model.lm import LM


@pytest.fixture
def plain(small_config, tmp_path) -> Path:
    sizes = replace(small_config, d_expert=64, d_shared=32, d_ff=32, mamba_n_heads=8)
    save(LM(sizes).init_weights(1).eval(), tmp_path / "plain", dtype=torch.bfloat16,
         extra=lambda new: (new / "tokenizer.json").write_text("{}") and None)  # fmt: skip
    return tmp_path / "plain"


@pytest.mark.parametrize(("flag", "dtype", "most"), [("--int8", torch.int8, 0.65), ("--int4", torch.uint8, 0.45)])
def test_a_folder_is_made_that_is_smaller_and_read(run, plain, tmp_path, flag, dtype, most):
    done = run("quantize", "--from", plain, flag, "--out", tmp_path / "small", "--json")
    assert done.code == 0
    facts = json.loads(done.out)
    assert (facts["out"], facts["calibration_rows"]) == (str(tmp_path / "small"), None)
    assert facts["bytes"] < most * facts["bytes_stored"]
    model = load(tmp_path / "small")
    assert model.get_parameter("lm_head.weight").dtype == dtype
    assert model.get_parameter("blocks.1.mixer.experts.down_proj").dtype == dtype
    assert model.get_parameter("embeddings.weight").dtype == torch.bfloat16
    assert (tmp_path / "small" / "tokenizer.json").read_text() == "{}"
    assert (tmp_path / "small" / "generation_config.json").is_file()
    done = run("info", "--model", tmp_path / "small")
    assert done.code == 0
    assert f"INT{flag[-1]}" in done.out


def test_what_makes_no_sense_is_one_line(run, plain, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "diary.txt").write_text("mine")
    cases = {
        ("--int8", "--int4"): "--int8 and --int4 contradict each other",
        ("--int8", "--policy", "everything"): "--policy is about FP8, and --int8 quantizes all matrices",
        ("--int4", "--dry-run"): "--dry-run is about FP8",
        ("--int8", "--samples", "10"): "--samples is about FP8 and 4 bits: for --int8 nothing is calibrated",
        ("--int8", "--out", plain): "is the model itself",
        ("--int8", "--out", tmp_path / "own"): "holds other files (diary.txt): give a new or an empty folder",
    }
    for arguments, message in cases.items():
        done = run("quantize", "--from", plain, *arguments)
        assert done.code == 2
        assert message in " ".join(done.err.replace("│", " ").split())
    done = run("quantize", "--from", "tiny", "--int4", "--samples", "10", "--out", tmp_path / "random")
    assert done.code == 2
    assert "random weights are not calibrated: leave --calibrate, --samples and" in " ".join(done.err.split())
    assert not (tmp_path / "random").exists()
    run("quantize", "--from", plain, "--int8", "--out", tmp_path / "small")
    done = run("quantize", "--from", tmp_path / "small", "--int4", "--out", tmp_path / "smaller")
    assert done.code == 2
    assert "is quantized already (INT8): give the model that it was made from" in " ".join(done.err.split())


@pytest.mark.parametrize("flag", ["--int8", "--int4"])
def test_a_preset_becomes_random_weights_that_can_be_run(run, tmp_path, flag):
    done = run("quantize", "--from", "tiny", flag, "--out", tmp_path / "random", "--json")
    assert done.code == 0
    assert "random weights, to measure with" in " ".join(done.err.split())
    facts = json.loads(done.out)
    assert (facts["model"], facts["bytes_stored"]) == ("tiny", None)
    model = load(tmp_path / "random")
    drawn = model.blocks[0].mixer.in_proj.operand().dequantized()
    assert float(drawn.std()) == pytest.approx(model.cfg.init_std, rel=0.05)
    assert abs(float(drawn.mean())) < 0.02 * model.cfg.init_std
    down = load_preset("tiny").n_blocks ** -0.5 * model.cfg.init_std
    assert float(model.blocks[0].mixer.out_proj.operand().dequantized().std()) == pytest.approx(down, rel=0.05)
    done = run("generate", "--model", tmp_path / "random", "--prompt", "a", "--max-tokens", "3")
    assert done.code == 0
    run("quantize", "--from", "tiny", flag, "--out", tmp_path / "again")
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("random", "again"))
    assert first == second
