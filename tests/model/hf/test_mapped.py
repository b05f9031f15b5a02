"""Integers that are used where they lie in a folder's files: the same numbers, held once, never written to."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nano3.config.errors import UserError
from nano3.config.presets import load_model
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.engine import Engine
from nano3.model.hf import mapped
from nano3.model.hf.folder import load, save
from nano3.model.hf.names import named_tensors
from nano3.model.lm import LM
from nano3.quantize.int_folder import quantize_folder
from nano3.quantize.random_folder import write_random

TOKENS = torch.randint(0, 288, (2, 21), generator=torch.Generator().manual_seed(3))
UP = "blocks.1.mixer.experts.up_proj"


@pytest.fixture(params=[8, 4])
def folder(small_config, tmp_path, request, monkeypatch) -> Path:
    monkeypatch.setattr(mapped, "LEAST", 1)
    sizes = {"d_expert": 64, "d_shared": 64, "d_ff": 64, "mamba_n_heads": 8, "d_model": 64, "vocab_size": 288}
    save(LM(replace(small_config, **sizes)).init_weights(1).eval(), tmp_path / "plain", dtype=torch.bfloat16)
    quantize_folder(tmp_path / "plain", tmp_path / "small", request.param)
    return tmp_path / "small"


def in_files(model: LM, folder: Path) -> set[str]:
    """Names of the tensors whose numbers lie in a mapped file of the folder."""
    rows = (line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line)
    ranges = [tuple(int(end, 16) for end in row[0].split("-")) for row in rows]
    return {n for n, t in named_tensors(model) if any(a <= t.data_ptr() < b for a, b in ranges)}


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_experts_and_matrices_are_not_copied(folder):
    found = in_files(load(folder), folder)
    assert {UP, f"{UP}_scale", "lm_head.weight", "blocks.0.mixer.in_proj.weight"} <= found
    assert "embeddings.weight" not in found


def test_what_lies_otherwise_is_copied_and_computes_the_same(folder):
    tensors = load_file(folder / "model.safetensors")
    expected = load(folder)(TOKENS)
    shutil.copytree(folder, folder.with_name("other"))
    save_file(tensors, folder.with_name("other") / "model.safetensors")  # in the order of names: up and down in turn
    model = load(folder.with_name("other"))
    assert torch.equal(model(TOKENS), expected)
    assert UP not in in_files(model, folder.with_name("other"))


def test_a_change_in_memory_does_not_reach_the_file(folder):
    before = (folder / "model.safetensors").read_bytes()
    model = load(folder)
    with torch.no_grad():
        model.get_parameter(UP).fill_(1)
    assert torch.equal(model.get_parameter(UP), torch.ones_like(model.get_parameter(UP)))
    assert (folder / "model.safetensors").read_bytes() == before


def test_it_goes_on_when_the_folder_is_replaced(folder):
    model = load(folder)
    expected = model(TOKENS)
    write_random(replace(model.cfg, quantization=None), folder, 8)
    assert torch.equal(model(TOKENS), expected)
    assert not torch.equal(load(folder)(TOKENS), expected)


def test_a_scale_that_is_none_is_refused(folder):
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    length = int.from_bytes(data[:8], "little")
    name = "backbone.layers.1.mixer.experts.3.up_proj.weight_scale"
    place = json.loads(data[8 : 8 + length])[name]
    start = 8 + length + place["data_offsets"][0]
    nan = {"F16": b"\x00\x7e", "F32": b"\x00\x00\xc0\x7f"}[place["dtype"]]
    data[start : start + len(nan)] = nan
    file.write_bytes(data)
    with pytest.raises(UserError, match=f"{name} is nan, which is no scale"):
        load(folder)


def test_the_engine_leaves_room_for_what_is_mapped(folder, monkeypatch):
    model = load(folder)
    assert 0 < model.mapped_bytes < (folder / "model.safetensors").stat().st_size
    tokenizer, free = Tokenizer.train(["a b"], 263), model.mapped_bytes + 4000
    monkeypatch.setattr("nano3.engine.sizing.available_memory", lambda _: free)
    with pytest.raises(UserError, match="memory of 1000 B has no room for one sequence"):
        Engine(model, tokenizer, max_context=64, page_size=8)
    free += 1 << 20
    assert Engine(model, tokenizer, max_context=64, page_size=8).sizes.total_bytes < 1 << 20


ANONYMOUS = """
import re, sys
from pathlib import Path
import torch
from nano3.model.hf.folder import load
torch.set_num_threads(1)
held = lambda: int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
before = held()
model = load(sys.argv[1])
print(held() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_model_of_the_full_width_takes_no_memory_of_its_own(tmp_path):
    write_random(replace(load_model("nano3-30b-a3b"), pattern="E", n_experts=16, vocab_size=64), tmp_path / "big", 4)
    arguments = [sys.executable, "-c", ANONYMOUS, str(tmp_path / "big")]
    own = int(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout)
    size = (tmp_path / "big" / "model.safetensors").stat().st_size
    assert size > 90e6
    assert own < 0.5 * size
