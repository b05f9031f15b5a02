"""`nano3 quantize` and `nano3 quantize inspect` as a user types them."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nano3.cli.app import app, main
from nano3.config.presets import load_model
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.model.gguf.write import write_gguf
from nano3.model.hf.folder import load, save
from nano3.model.lm import LM
from nano3.progress import Progress

CHATS = [{"messages": [{"role": "user", "content": f"Add {i} and {i + 1}."},
                       {"role": "assistant", "content": f"That is {2 * i + 1}."}]} for i in range(30)]  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch, small_config) -> Path:
    """A folder with a model, its tokenizer and conversations."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NANO3_MODEL", raising=False)
    tokenizer = Tokenizer.train(["Add and that is user assistant"], 300)
    model = LM(replace(small_config, vocab_size=tokenizer.vocab_size)).init_weights(1).eval()
    save(model, tmp_path / "mine", extra=tokenizer.save)
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in CHATS))
    return tmp_path


def run(*arguments: str):
    result = CliRunner().invoke(app, ["quantize", *arguments])
    assert result.exit_code == 0, result.output
    return result


def test_a_model_becomes_a_folder_that_is_read_and_inspected(place):
    facts = json.loads(run("--from", "mine", "--calibrate", "chats.jsonl", "--samples", "20", "--json").stdout)
    assert facts["out"] == "runs/mine-fp8"
    assert facts["bytes"] < facts["bytes_bf16"] < facts["bytes_stored"]
    assert load(facts["out"]).cfg.quantization.algorithm == "FP8"
    tensors = json.loads(run("inspect", facts["out"], "--reference", "mine", "--json").stdout)
    fp8 = [tensor for tensor in tensors if tensor["dtype"] == "float8_e4m3fn"]
    assert {tensor["name"].removesuffix(".weight") for tensor in fp8} == set(facts["modules"])
    assert all(0.005 < tensor["error"] < 0.05 and tensor["largest"] == pytest.approx(1) for tensor in fp8)
    assert run("inspect", facts["out"]).stdout.endswith(f"{len(fp8)} FP8 tensors; {len(tensors) - len(fp8) - 2} others "
                                                        "are not shown (--all)\n")  # fmt: skip
    again = run("--from", "mine", "--calibrate", "chats.jsonl", "--samples", "20")
    assert "runs/mine-fp8-2" in again.output
    assert "nano3 eval lm --from runs/mine-fp8-2" in again.output, "--model would be a server's"


def test_an_interrupted_command_says_how_to_go_on(place, monkeypatch):
    def stop(self, cost, what=""):
        raise KeyboardInterrupt

    ask = ["quantize", "--from", "mine", "--calibrate", "chats.jsonl", "--samples", "5"]
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "sample", stop)
        cut = CliRunner().invoke(app, ask)
    assert cut.exit_code != 0
    assert "the same command goes on, with --out runs/mine-fp8" in cut.output
    assert not (place / "runs" / "mine-fp8").exists()
    assert "--out runs/mine-fp8" not in run(*ask[1:]).stdout
    assert load("runs/mine-fp8").cfg.quantization.algorithm == "FP8"


def test_a_dry_run_tells_bytes_and_writes_nothing(place):
    plan = json.loads(run("--from", "mine", "--dry-run", "--json").stdout)
    assert sorted(path.name for path in place.iterdir()) == ["chats.jsonl", "mine"]
    facts = json.loads(run("--from", "mine", "--calibrate", "chats.jsonl", "--samples", "5", "--json").stdout)
    assert plan["bytes"] == facts["bytes"]
    assert plan["modules"] == facts["modules"]
    assert "FP8 modules" in run("--from", "mine", "--dry-run").stdout


@pytest.mark.parametrize("verb", ["inspect", "sensitivity"])
def test_options_stand_behind_the_inner_verb(place, verb):
    done = CliRunner().invoke(app, ["quantize", "--from", "mine", "--int8", verb, "mine"])
    assert done.exit_code == 2
    assert f"give options behind {verb}" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "nowhere"], "nowhere: no such folder"),
        (["--from", "bench-110m"], "bench-110m: a model preset, which has no weights to calibrate FP8 with"),
        (["--from", "x.gguf"], "x.gguf: no such file; `nano3 export --gguf q8_0 x.gguf` makes one"),
        (["--from", "mine", "--policy", "half"], "--policy half: no such policy"),
        (["--from", "mine", "--calibrate", "none.jsonl"], "none.jsonl"),
        (["--from", "mine", "--samples", "0"], "is not a whole number of at least 1"),
        (["--from", "mine", "--length", "1"], "--length 1: a row needs at least 2 tokens"),
        (["--from", "mine", "--calibrate", "chats.jsonl", "--out", "mine"], "is the model itself"),
        (["inspect", "mine", "--reference", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_what_is_wrong_is_one_line(place, capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        main(["quantize", *arguments])
    assert end.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert message in line


def test_what_is_quantized_is_not_quantized_again_and_not_trained(place, capsys):
    run("--from", "mine", "--calibrate", "chats.jsonl", "--samples", "5", "--out", "fp8")
    for arguments in (["quantize", "--from", "fp8"], ["sft", "--from", "fp8", "--data", "chats.jsonl"]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert "quantized" in error


@pytest.mark.parametrize(("bits", "error"), [(8, 0.01), (4, 0.12)])
def test_integers_are_inspected(place, bits, error):
    sizes = {"d_expert": 64, "d_shared": 32, "d_ff": 32, "mamba_n_heads": 8}
    model = load(place / "mine").cfg
    save(LM(replace(model, **sizes)).init_weights(1).eval(), place / "even")
    run("--from", "even", f"--int{bits}", "--out", "integers")
    tensors = json.loads(run("inspect", "integers", "--reference", "even", "--json").stdout)
    found = {t["name"].removesuffix("_packed"): t for t in tensors if t["dtype"] == f"int{bits}"}
    assert found["lm_head.weight"]["shape"] == [model.vocab_size, model.d_model]
    assert all(error / 4 < t["error"] < error and t["scale"] > 0 and t["largest"] == 1 for t in found.values())
    assert f"{len(found)} int{bits} tensors" in run("inspect", "integers").stdout


def test_integers_are_neither_trained_nor_made_of_what_is_no_plain_model(place, capsys):
    run("--from", "mine", "--int8", "--out", "int8")
    (place / "adapter").mkdir()
    (place / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "mine"}))
    for arguments, message in (
        (["quantize", "--int8", "--from", "int8"], "int8: is quantized already"),
        (["quantize", "--int8", "--from", "adapter"], "adapter: is a LoRA adapter; merge it first"),
        (["sft", "--from", "int8", "--data", "chats.jsonl"], "is quantized, and wanted here as it was before"),
    ):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_gguf_file_is_quantized_and_inspected(place, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    cfg = replace(load_model("tiny"), pattern="ME*", vocab_size=320, d_model=64, d_shared=64, n_experts=4)
    write_gguf(LM(cfg).init_weights(2), place / "m.gguf", "bf16")
    facts = json.loads(run("--from", "m.gguf", "--int8", "--out", "of-gguf", "--json").stdout)
    assert facts["bytes_stored"] == (place / "m.gguf").stat().st_size
    assert load("of-gguf").cfg.quantization.algorithm == "INT8"
    assert json.loads(run("--from", "m.gguf", "--dry-run", "--json").stdout)["bytes_stored"] == facts["bytes_stored"]
    assert "no quantized tensors" in run("inspect", "m.gguf", "--all").stdout


def test_the_policy_is_told_and_what_is_not_quantized_is_said_to_be_so(place, capsys):
    done = run("--from", "mine", "--calibrate", "chats.jsonl", "--samples", "5", "--policy", "everything")
    assert "policy: everything: attention fp8, mamba fp8, kv fp8, edges fp8; " in done.stderr
    assert "everything: attention fp8" in done.stdout
    done = run("--from", "mine", "--int8")
    assert "policy: int8 in all matrices; embeddings, convolutions, routers and norms stay as they are" in done.stderr
    # The newest of the two is inspected where none is named.
    done = run("inspect")
    assert done.stderr.startswith("model: runs/mine-int8 (the newest quantized one;")
    assert "int8 tensors" in done.stdout
    for more in ([], ["--json"]):
        with pytest.raises(SystemExit) as end:
            main(["quantize", "inspect", "mine", *more])
        assert end.value.code == 2
        assert re.search(
            r"mine: is not quantized: \d+ tensors of .*float32.*; --all lists them", capsys.readouterr().err
        )
    assert "no quantized tensors" in run("inspect", "mine", "--all").stdout


CALIBRATED = ["--calibrate", "chats.jsonl", "--samples", "5"]


@pytest.mark.parametrize("form", [["--int8"], ["--int4"], ["--int4", *CALIBRATED], CALIBRATED])
def test_a_model_is_replaced_only_when_asked_for(place, capsys, form):
    sizes = {"d_expert": 64, "d_shared": 32, "d_ff": 32, "mamba_n_heads": 8}
    even = LM(replace(load(place / "mine").cfg, **sizes)).init_weights(1).eval()
    save(even, place / "even", extra=Tokenizer.load(place / "mine").save)
    shutil.copytree(place / "even", place / "other")
    before = (place / "other" / "model.safetensors").read_bytes()
    (place / "run" / "charts").mkdir(parents=True)
    (place / "run" / ".lock").touch()
    for out, words in (("other", "--out other: there is a model already: give another name, or --force to replace it"),
                       ("run", "--out run: holds other files (charts)")):  # fmt: skip
        with pytest.raises(SystemExit) as end:
            main(["quantize", "--from", "even", "--out", out, *form])
        assert end.value.code == 2
        assert words in capsys.readouterr().err
    assert (place / "other" / "model.safetensors").read_bytes() == before
    done = run("--from", "even", "--out", "other", *form, "--force")
    assert ("on 5 rows" in done.output) == (form[0] == "--int4" and len(form) > 1)
    assert load("other").cfg.quantization is not None
    # Never anything but a model.
    with pytest.raises(SystemExit):
        main(["quantize", "--from", "even", "--out", "run", *form, "--force"])
    assert "holds charts, which saving a model here would delete" in capsys.readouterr().err
