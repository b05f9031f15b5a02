from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

import nano3
from nano3.cli.app import main
from nano3.config.lora import LoraConfig
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.model.hf.folder import load, save
from nano3.model.lora.apply import adapted, apply_lora
from nano3.model.lora.folder import save_adapter
from nano3.model.lora.merge_folder import merge_folder


@pytest.fixture
def base(small_model, tmp_path):
    tokenizer = Tokenizer.train(["a text of a few words and letters " * 5], 300)
    small_model.to_dtype(torch.bfloat16)
    save(small_model, tmp_path / "base", extra=tokenizer.save)
    settings = tmp_path / "base" / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"eos_token_id": [2, 7]}))
    return tmp_path / "base"


@pytest.fixture
def adapter(base, tmp_path):
    model = load(base)
    apply_lora(model, LoraConfig(rank=3))
    with torch.no_grad():
        for _, module in adapted(model):
            for each in module.adapters():
                each.B.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    save_adapter(model, tmp_path / "adapter", str(base))
    return tmp_path / "adapter"


def test_a_merged_folder_is_a_whole_model_of_the_bases_types(run, base, adapter, tmp_path):
    done = run("merge", adapter, "--out", tmp_path / "merged", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out) == {"out": str(tmp_path / "merged"), "base": str(base), "rank": 3, "alpha": 32.0}
    assert "experts.up_proj" in done.err
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "merged"))
    assert {name: t.dtype for name, t in before.items()} == {name: t.dtype for name, t in after.items()}
    name = "backbone.layers.0.mixer.in_proj"
    stored = load_file(adapter / "adapter_model.safetensors")
    a, b = (stored[f"base_model.model.model.layers.0.mixer.in_proj.lora_{which}.weight"] for which in "AB")
    assert torch.equal(after[f"{name}.weight"], (before[f"{name}.weight"].float() + 32 / 3 * (b @ a)).bfloat16())
    assert torch.equal(after["lm_head.weight"], before["lm_head.weight"])
    settings = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [2, 7]
    assert (tmp_path / "merged" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    tokens = torch.arange(40).unsqueeze(0)
    merged, unmerged = nano3.load(tmp_path / "merged", torch.float32), nano3.load(adapter, torch.float32)
    assert torch.cosine_similarity(merged(tokens).flatten(), unmerged(tokens).flatten(), dim=0) > 0.99


def test_another_base_may_be_named(base, adapter, tmp_path):
    moved = base.rename(tmp_path / "moved")
    merge_folder(adapter, moved, tmp_path / "merged")
    assert (tmp_path / "merged" / "config.json").is_file()


@pytest.mark.parametrize("kind", ["no adapter", "nothing", "no base", "not a model"])
def test_wrong_folders_are_one_line_and_exit_code_2(base, adapter, tmp_path, capsys, kind):
    arguments, words = [adapter, "--out", tmp_path / "merged"], "holds other files (notes.txt)"
    if kind == "no adapter":
        arguments[0], words = base, "no adapter_config.json there"
    elif kind == "nothing":
        arguments[0], words = tmp_path / "nothing", "nothing: no such folder"
    elif kind == "no base":
        arguments, words = [*arguments, "--base", "runs/nothing"], "runs/nothing: no such folder"
    else:
        (tmp_path / "merged").mkdir()
        (tmp_path / "merged" / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit) as end:
        main(["merge", *map(str, arguments)])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert words in error
    assert len(error.splitlines()) == 1, error
