"""`nano3 quantize sensitivity`: the loss with one part in FP8 at a time."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from nano3.cli.app import app, main
from nano3.config.model import ModelConfig
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.eval.intervals import bootstrap_means, middle95
from nano3.model.hf.folder import load, save
from nano3.model.lm import LM
from nano3.quantize.policy import list_matrices, read_policy, select
from nano3.quantize.rows import CalibrationRows
from nano3.quantize.run import quantize_folder
from nano3.quantize.sensitivity import HeldoutRows, Part, list_parts, measure

CFG = ModelConfig("ME*M-", 61, 32, n_heads=2, head_dim=16, mamba_n_heads=2, mamba_head_dim=16, d_state=16, n_groups=1,
                  n_experts=4, d_expert=32, d_shared=32, d_ff=32, init_std=0.2)  # fmt: skip
ROWS = [[(7 * i + j * j) % 61 for j in range(5 + i % 9)] for i in range(12)]
SEEN, ASKED = ROWS[:6], ROWS[6:]
TARGETS = [[-100, *row[2:], -100] for row in ASKED]


def rows() -> tuple[CalibrationRows, HeldoutRows]:
    return CalibrationRows(SEEN), HeldoutRows(ASKED, TARGETS)


def model() -> LM:
    return LM(CFG).init_weights(3).eval()


def middle(shares: list[float]) -> tuple[float, float]:
    return middle95(bootstrap_means(shares, 0))


@torch.inference_mode()
def loss_of(other: LM) -> float:
    """In float32, row by row."""
    other.compute_dtype = torch.float32
    nats, count = 0.0, 0
    for row, targets in zip(ASKED, TARGETS, strict=True):
        scores = other(torch.tensor([row]))[0].double().log_softmax(-1)
        chosen = [(i, target) for i, target in enumerate(targets) if target >= 0]
        nats -= sum(float(scores[i, target]) for i, target in chosen)
        count += len(chosen)
    return nats / count


@pytest.mark.parametrize("place", range(7))
def test_a_parts_loss_is_that_of_a_folder_where_it_alone_is_fp8(place, tmp_path):
    part = list_parts(CFG, "part")[place]
    ranking = measure(model(), *rows(), [part], middle)
    save(model(), tmp_path / "plain", torch.bfloat16)
    rules = {matrix.name: "bf16" for matrix in list_matrices(CFG)} | {m.name: "fp8" for m in part.matrices}
    rules = {name.replace("experts.", "experts.*.") if ".experts." in name else name: f for name, f in rules.items()}
    policy = replace(read_policy(["kv=bf16"]), rules=rules)
    quantize_folder(tmp_path / "plain", tmp_path / "fp8", select(CFG, policy), CalibrationRows(SEEN))
    (found,) = ranking.parts
    assert ranking.loss == pytest.approx(loss_of(load(tmp_path / "plain")), abs=2e-6)
    assert found.loss == pytest.approx(loss_of(load(tmp_path / "fp8")), abs=2e-6)
    assert found.loss != pytest.approx(ranking.loss, abs=2e-6)
    assert found.increase == pytest.approx(found.loss / ranking.loss - 1, abs=1e-6)
    assert found.low <= found.increase <= found.high


def test_the_model_is_as_before_after_each_part():
    parts = list_parts(CFG, "part")
    whole = {part.name: part.loss for part in measure(model(), *rows(), parts, middle).parts}
    alone = {part.name: measure(model(), *rows(), [part], middle).parts[0].loss for part in parts}
    assert whole == pytest.approx(alone, abs=1e-6)


def test_parts_blocks_and_matrices():
    assert [part.name for part in list_parts(CFG, "part")] == [
        "block 0, mamba", "block 1, experts", "block 1, shared expert", "block 2, attention", "block 3, mamba",
        "block 4, mlp", "lm_head"]  # fmt: skip
    assert [(part.block, len(part.matrices)) for part in list_parts(CFG, "block")] == [
        (0, 2), (1, 4), (2, 4), (3, 2), (4, 2), (-1, 1)]  # fmt: skip
    assert [part.name for part in list_parts(CFG, "matrix")][2] == "layers.1.mixer.experts.up_proj"


def test_the_costliest_comes_first_and_what_the_report_keeps_is_marked():
    found = measure(model(), *rows(), list_parts(CFG, "part"), middle).parts
    assert [part.increase for part in found] == sorted((part.increase for part in found), reverse=True)
    # The Mamba-2 block directly before attention would be block 1: there is none here.
    assert {part.name for part in found if part.kept} == {"block 2, attention", "lm_head"}


def test_a_weight_that_is_not_finite_is_refused():
    broken = model()
    broken.lm_head.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        measure(broken, *rows(), [Part("head", -1, "head", (list(list_matrices(CFG))[-1],))], middle)


@pytest.fixture
def place(tmp_path, monkeypatch, small_config):
    """A folder with a model, its tokenizer and conversations."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NANO3_MODEL", raising=False)
    tokenizer = Tokenizer.train(["Add and that is user assistant"], 300)
    save(
        LM(replace(small_config, vocab_size=tokenizer.vocab_size)).init_weights(1),
        tmp_path / "mine",
        extra=tokenizer.save,
    )
    chats = [{"messages": [{"role": "user", "content": f"Add {i} and {i + 1}."},
                           {"role": "assistant", "content": f"That is {2 * i + 1}."}]} for i in range(40)]  # fmt: skip
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    (tmp_path / "one.jsonl").write_text(json.dumps(chats[0]) + "\n")
    return tmp_path


def test_the_command_ranks_on_own_conversations_and_writes_files(place):
    options = ["--from", "mine", "--calibrate", "chats.jsonl", "--samples", "10", "--heldout", "5"]
    before = (place / "mine" / "model.safetensors").read_bytes()
    done = CliRunner().invoke(app, ["quantize", "sensitivity", *options, "--out", "new"])
    assert done.exit_code == 0, done.output
    assert "10 rows to calibrate with, 5 held out" in done.output
    found = json.loads((place / "new" / "result.json").read_text())
    assert found["rows"] == 5
    assert all(part["name"] in done.output for part in found["parts"])
    assert (place / "new" / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    assert (place / "mine" / "model.safetensors").read_bytes() == before


def test_without_conversations_made_tasks_are_held_out(place):
    options = ["--from", "mine", "--samples", "6", "--heldout", "9", "--by", "block", "--length", "4096", "--json"]
    done = CliRunner().invoke(app, ["quantize", "sensitivity", *options])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["rows"], found["calibration_rows"], found["by"]) == (9, 6, "block")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "nowhere"], "nowhere: no such folder"),
        (["--from", "mine", "--by", "layer"], "--by"),
        (["--from", "mine", "--calibrate", "none.jsonl"], "none.jsonl"),
        (["--from", "mine", "--calibrate", "one.jsonl"], "no row"),
        (["--from", "mine", "--calibrate", "chats.jsonl", "--length", "1"], "--length is 1; it must be at least 2"),
        (["--from", "mine", "--heldout", "0"], "is not a whole number of at least 1"),
        (["--from", "mine", "--out", "mine"], "mine"),
    ],
)
def test_what_is_wrong_is_one_line(place, capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        main(["quantize", "sensitivity", *arguments])
    assert end.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert message in line
