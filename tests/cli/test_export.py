"""`nano3 export`, and a GGUF file in the place of a folder."""

from __future__ import annotations

import dataclasses
import json
import re
import sys

import pytest
import torch

import nano3
from nano3.cli.app import main
from nano3.config.lora import LoraConfig
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.model.lm import LM
from nano3.model.lora.apply import adapted, apply_lora
from nano3.model.lora.folder import save_adapter
from nano3.splits import LLAMA_CPP_SPLIT
from tests.cli.conftest import TEXT


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def folder(small_config, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "small"
    tokenizer = Tokenizer.train([TEXT], 320, LLAMA_CPP_SPLIT)
    cfg = dataclasses.replace(small_config, pattern="ME*", vocab_size=tokenizer.vocab_size)
    nano3.save(LM(cfg).init_weights(seed=3).to_dtype(torch.bfloat16), path)
    tokenizer.save(path)
    return path


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code, *capsys.readouterr()


def test_greedy_text_of_the_file_is_the_folders(folder, tmp_path, capsys):
    code, out, _ = run(capsys, "export", "--gguf", "bf16", tmp_path / "m.gguf", "--from", folder)
    assert code == 0
    assert out.startswith(f"exported: {tmp_path / 'm.gguf'} (")
    options = ("--prompt", "def main", "--temperature", 0, "--max-tokens", 12, "--dtype", "float32")
    texts = [run(capsys, "generate", "--model", model, *options) for model in (folder, tmp_path / "m.gguf")]
    assert texts[0][0] == 0
    assert texts[0][1] == texts[1][1] != ""


def test_json_and_info_on_the_file(folder, tmp_path, capsys):
    code, out, _ = run(capsys, "export", "--gguf", "q4_0", tmp_path / "m.gguf", "--from", folder, "--json")
    facts = json.loads(out)
    assert code == 0
    assert (facts["type"], facts["bytes"]) == ("q4_0", (tmp_path / "m.gguf").stat().st_size)
    code, out, _ = run(capsys, "info", "--model", tmp_path / "m.gguf", "--json")
    assert code == 0
    code, folders, _ = run(capsys, "info", "--model", folder, "--json")
    found, expected = ({k: v for k, v in json.loads(text).items() if "param" in k} for text in (out, folders))
    assert found == expected


def test_an_adapter_is_merged_on_the_way(folder, tmp_path, capsys):
    model = nano3.load(folder)
    apply_lora(model, LoraConfig(rank=2))
    with torch.no_grad():
        for _, module in adapted(model):
            for each in module.adapters():
                each.B.fill_(0.5)
    save_adapter(model, tmp_path / "adapter", str(folder))
    assert run(capsys, "export", "--gguf", "bf16", tmp_path / "m.gguf", "--from", tmp_path / "adapter")[0] == 0
    assert run(capsys, "merge", tmp_path / "adapter", "--out", tmp_path / "merged")[0] == 0
    merged, file, base = (nano3.load(p) for p in (tmp_path / "merged", tmp_path / "m.gguf", folder))
    weight = lambda m: m.blocks[0].mixer.in_proj.weight  # noqa: E731
    assert torch.equal(weight(file), weight(merged))
    assert not torch.equal(weight(file), weight(base))
    # What is there now is replaced only when that is asked for.
    for command in (
        ["export", "--gguf", "q4_0", tmp_path / "m.gguf", "--from", folder],
        ["merge", tmp_path / "adapter", "--out", tmp_path / "merged"],
    ):
        code, _, error = run(capsys, *command)
        assert code == 2
        assert "there is a model already: give another name, or --force to replace it" in error
        assert run(capsys, *command, "--force")[0] == 0


def test_a_tokenizer_that_llama_cpp_has_not_is_one_line(model_folder, tmp_path, capsys, monkeypatch):
    code, _, err = run(capsys, "export", "--gguf", "bf16", tmp_path / "m.gguf", "--from", model_folder)
    assert code == 2
    assert err.startswith("error: llama.cpp cannot cut text into words as this tokenizer does")
    assert err.count("\n") == 1
    monkeypatch.setitem(sys.modules, "gguf", None)
    code, _, err = run(capsys, "export", "--gguf", "bf16", tmp_path / "m.gguf", "--from", model_folder)
    assert (code, err.count("\n")) == (2, 1)
    assert re.search(r"cannot cut text .*; besides, GGUF files need the package gguf: .*\[gguf\]", err)


def test_a_damaged_file_is_one_line(tmp_path, capsys):
    (tmp_path / "m.gguf").write_bytes(b"GGUF\x03\0\0\0")
    code, _, err = run(capsys, "generate", "--model", tmp_path / "m.gguf", "--prompt", "text")
    assert code == 2
    assert err == f"error: {tmp_path / 'm.gguf'}: its beginning is cut off or damaged; copy the file again\n"
