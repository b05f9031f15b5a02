"""`nano3 sft --set lora.rank=...`."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

import nano3
from nano3.cli.app import main as command_line
from nano3.config.errors import UserError
from nano3.config.presets import load_sft
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.launch import find_tokenizer, is_base_model
from nano3.model.hf.folder import load, save
from nano3.model.lm import LM
from nano3.stages.sft import main
from nano3.train.tracking.progress import Silent

SETTINGS = [
    *("data.blend={count=3, spell=1}", "data.generated_rows=40", "data.pack_length=384", "train.steps=4"),
    *("train.dtype=float32", "checkpoint.every_steps=2", "heldout.every_steps=0", "answers.tasks=0"),
    *("lora.rank=3", "lora.dropout=0.1"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small model with a chat tokenizer, as pretraining leaves it."""
    tokenizer = Tokenizer.train(["the quick brown fox spells words and counts letters\n" * 3], 320)
    ids = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    sizes = {"vocab_size": tokenizer.vocab_size, "d_model": 32, "d_expert": 32, "d_shared": 32, "pattern": "M*E"}
    model = LM(dataclasses.replace(load_sft("tiny").model, **sizes, **ids)).init_weights(0)
    model.stage = "pretrain"
    folder = tmp_path_factory.mktemp("base") / "base"
    save(model, folder, extra=tokenizer.save)
    return folder


@pytest.fixture(autouse=True)
def _no_charts(monkeypatch):
    monkeypatch.setattr("nano3.train.tracking.record.charts.draw", lambda *args: [])


def run(folder, base=None, *settings, **options):
    return main(load_sft("tiny", [*SETTINGS, *settings]), folder, base, progress=Silent(), **options)


def adapter(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_adapters_train_the_base_stays_and_both_folders_agree(base, tmp_path, capsys):
    run(tmp_path / "run", base)
    assert "LoRA of rank 3, alpha 32, on 10 projections" in capsys.readouterr().err
    before, after = load(base).state_dict(), load(tmp_path / "run" / "model").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        name for name in before if name.endswith(("_proj.weight", "experts.up_proj", "experts.down_proj"))
    }
    tokens = torch.arange(5, 45).unsqueeze(0)
    merged, unmerged = (nano3.load(path)(tokens) for path in (tmp_path / "run", tmp_path / "run" / "adapter"))
    torch.testing.assert_close(merged, unmerged, rtol=1e-4, atol=1e-4)


def test_an_adapter_chats_with_the_tokenizer_of_its_run(base, tmp_path, capsys):
    """That is another one than the base's here, with as many tokens."""
    Tokenizer.train(["some other words 0123456789 for other merges\n" * 3], 320).save(tmp_path / "tokenizer")
    run(tmp_path / "run", base, f"data.tokenizer={tmp_path / 'tokenizer'}")
    assert command_line_end(["merge", str(tmp_path / "run" / "adapter"), "--out", str(tmp_path / "merged")]) == 0
    own = fingerprint(tmp_path / "run")
    assert own != fingerprint(base)
    settings = (tmp_path / "run" / "model" / "generation_config.json").read_text()
    for name in ("run/adapter", "merged"):
        assert not is_base_model(str(tmp_path / name))
        assert fingerprint(tmp_path / name) == own
        assert (tmp_path / name / "generation_config.json").read_text() == settings
    assert nano3.load(tmp_path / "run" / "adapter").stage == "sft"
    assert is_base_model(str(base))


def fingerprint(folder):
    tokenizer = find_tokenizer(str(folder))
    assert tokenizer is not None
    return tokenizer.fingerprint()


def command_line_end(words):
    with pytest.raises(SystemExit) as end:
        command_line(words)
    return end.value.code


def test_an_interrupted_run_goes_on_exactly(base, tmp_path):
    run(tmp_path / "whole", base, "schedule.horizon_steps=4")
    run(tmp_path / "cut", base, "train.steps=2", "schedule.horizon_steps=4")
    run(tmp_path / "cut", base, "schedule.horizon_steps=4", resume=True)
    whole, cut = adapter(tmp_path / "whole"), adapter(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_a_pattern_that_matches_nothing_is_told_before_any_work(base, tmp_path):
    with pytest.raises(UserError, match="no projection matches 'gate_proj'"):
        run(tmp_path / "run", base, 'lora.targets=["q_proj", "gate_proj"]')
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("targets", ['["q_proj", "gate_proj"]', "out_proj"])
def test_the_command_line_takes_the_models_tokenizer_and_names_wrong_targets(base, tmp_path, capsys, targets):
    settings = [*SETTINGS, f"lora.targets={targets}"]
    with pytest.raises(SystemExit) as end:
        command_line(
            ["sft", "--from", str(base), "--out", str(tmp_path / "run"), *(f"--set={text}" for text in settings)]
        )
    error = capsys.readouterr().err
    if "gate_proj" in targets:
        assert end.value.code == 2
        assert error.splitlines()[-1].startswith("error: lora.targets: no projection matches 'gate_proj'")
    else:
        assert end.value.code == 0, error
        assert "LoRA of rank 3, alpha 32, on 1 projections:" in error
        assert (tmp_path / "run" / "adapter" / "adapter_config.json").is_file()
