"""`nano3 info`: exact counts of presets and folders, the machine, and the backends."""

import json

from transformers import NemotronHConfig
from typer.testing import CliRunner

from nano3.cli import hardware
from nano3.cli.app import app
from nano3.cli.output import bytes_text, count_text, value_text
from nano3.config.presets import load_model


def info(*args):
    done = CliRunner().invoke(app, ["info", *args], env={"COLUMNS": "120"})
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_reports_counts_as_json():
    facts = json.loads(info("--model", "nano3-30b-a3b", "--json"))
    assert facts["total_parameters"] == 31_577_937_344
    assert facts["active_parameters"] == 3_580_073_408
    assert facts["active_parameters_without_embedding"] == 3_227_751_872
    assert facts["config"]["d_model"] == 2688
    assert {name: part["blocks"] for name, part in facts["blocks"].items()} == {
        "Mamba-2": 23,
        "mixture of experts": 23,
        "attention": 6,
    }


def test_the_table_adds_up():
    text = info("--model", "tiny")
    assert f"{json.loads(info('--model', 'tiny', '--json'))['total_parameters']:,}" in text
    for words in ("Mamba-2 (M)", "attention (*)", "mixture of experts (E)", "output projection", "active per token"):
        assert words in text


def test_a_hugging_face_folder_and_a_run_folder_are_read(tmp_path):
    folder = tmp_path / "model"
    NemotronHConfig(hybrid_override_pattern="M*E", vocab_size=64, hidden_size=48).save_pretrained(folder)
    facts = json.loads(info("--model", str(folder), "--json"))
    assert facts["config"]["d_model"] == 48
    assert facts["config"]["pattern"] == "M*E"
    assert json.loads(info("--model", str(tmp_path), "--json"))["config"] == facts["config"]


def test_a_toml_file_of_sizes_is_read(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('base = "tiny"\nd_model = 64\n')
    assert json.loads(info("--model", str(path), "--json"))["config"]["d_model"] == 64


def test_the_machine_and_a_reasoned_backend_for_each_op():
    facts = json.loads(info("--json"))
    assert set(facts["models"]) == {"tiny", "bench-110m", "nano3-30b-a3b"}
    assert facts["hardware"]["cores"] >= 1
    assert facts["hardware"]["memory"] >= facts["hardware"]["memory_available"] > 0
    assert facts["versions"]["torch"]
    chosen = {row["op"]: row for row in facts["backends"]}
    assert {"ssd_scan", "attention", "grouped_mlp", "linear_cross_entropy"} <= set(chosen)
    assert all(row["backend"] and row["reason"] for row in chosen.values())
    assert not chosen["decoding step"]["reason"].startswith("decoding step")
    assert "mamba_step" in chosen["ssd_step"]["reason"]


def test_backends_can_be_asked_for_and_left_out():
    assert "backends" not in json.loads(info("--no-backends", "--json"))
    assert "ssd_scan" in info("--model", "tiny", "--backends")


def test_instruction_sets_and_gpus_are_read_from_proc(tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text("model name\t: Example CPU\nflags\t\t: fpu avx2 avx512f amx_bf16\n")
    (tmp_path / "gpus" / "0000:01").mkdir(parents=True)
    (tmp_path / "gpus" / "0000:01" / "information").write_text("Model: \t\t NVIDIA H100\nIRQ: 1\n")
    monkeypatch.setattr(hardware, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(hardware, "_GPUS", tmp_path / "none")
    found = hardware.detect()
    assert (found.cpu, found.isa, found.gpus) == ("Example CPU", ["avx2", "avx512f", "amx_bf16"], [])
    assert found.compute_dtype == "bfloat16"
    (tmp_path / "cpuinfo").write_text("flags : avx2\n")
    assert hardware.detect().compute_dtype == "float32"
    monkeypatch.setattr(hardware, "_GPUS", tmp_path / "gpus")
    assert hardware.detect().gpus == ["NVIDIA H100"]


def test_numbers_are_written_for_people():
    assert [bytes_text(n) for n in (12, 2048, 588 * 2**30)] == ["12 B", "2.0 KiB", "588.0 GiB"]
    assert [count_text(n) for n in (512, 31_577_937_344, 23.5e12)] == ["512", "31.6B", "23.5T"]
    assert [value_text(v) for v in (None, True, 3072, 1e-5)] == ["not set", "true", "3,072", "1e-05"]
    assert value_text(load_model("tiny").pattern) == load_model("tiny").pattern
