"""`--int8` and `--int4` folders: written matrix by matrix, the same as from a model in memory, in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nano3.config.errors import UserError
from nano3.config.presets import load_model
from nano3.model.hf.folder import load, save
from nano3.model.lm import LM
from nano3.quantize.int_folder import quantize_folder
from nano3.quantize.int_formats import quantize_integers

DIVIDED = {"d_expert": 64, "d_shared": 32, "d_ff": 32, "mamba_n_heads": 8}
"""Sizes of rows that divide into groups of 32."""


@pytest.fixture(params=[torch.bfloat16, torch.float32])
def plain(small_config, tmp_path, request) -> Path:
    save(LM(replace(small_config, **DIVIDED)).init_weights(1).eval(), tmp_path / "plain", dtype=request.param)
    return tmp_path / "plain"


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {n: t for f in folder.glob("*.safetensors") for n, t in load_file(f).items()}


def same(a: Path, b: Path) -> None:
    first, second = tensors_of(a), tensors_of(b)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert torch.equal(tensor, second[name]), name
    for file in ("config.json", "generation_config.json"):
        assert (a / file).read_text() == (b / file).read_text()


@pytest.mark.parametrize("bits", [8, 4])
def test_the_folder_is_that_of_a_model_quantized_in_memory(plain, tmp_path, bits):
    model = load(plain)
    quantize_integers(model, bits)
    save(model, tmp_path / "whole")
    quantize_folder(plain, tmp_path / "small", bits)
    same(tmp_path / "small", tmp_path / "whole")


def test_experts_that_are_stored_together_are_read(plain, tmp_path):
    tensors, stacked = tensors_of(plain), {}
    for name in list(tensors):
        if ".experts.0." in name:
            parts = [tensors.pop(name.replace(".0.", f".{e}.")) for e in range(load(plain).cfg.n_experts)]
            stacked[name.replace(".0.", ".").removesuffix(".weight")] = torch.stack(parts)
    quantize_folder(plain, tmp_path / "one by one", 4)
    save_file(tensors | stacked, plain / "model.safetensors")
    quantize_folder(plain, tmp_path / "together", 4)
    same(tmp_path / "together", tmp_path / "one by one")


def test_every_matrix_begins_at_a_line_of_the_cache_with_its_experts_in_a_row(small_config, tmp_path):
    sizes = replace(small_config, **DIVIDED, d_model=64, vocab_size=96)
    save(LM(sizes).init_weights(1).eval(), tmp_path / "plain")
    quantize_folder(tmp_path / "plain", tmp_path / "small", 4)
    with (tmp_path / "small" / "model.safetensors").open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    places = {n: v["data_offsets"] for n, v in header.items() if n != "__metadata__"}
    packed = [n for n in places if n.endswith("weight_packed")]
    assert packed
    assert (8 + length) % 64 == 0
    assert all(places[name][0] % 64 == 0 for name in packed)
    up = [places[f"backbone.layers.1.mixer.experts.{e}.up_proj.weight_packed"] for e in range(sizes.n_experts)]
    assert [end for _, end in up[:-1]] == [start for start, _ in up[1:]]


def test_a_number_that_is_none_ends_it_and_leaves_nothing(plain, tmp_path):
    tensors = tensors_of(plain)
    name = "backbone.layers.1.mixer.experts.2.up_proj.weight"
    tensors[name][1, 1] = torch.nan
    save_file(tensors, plain / "model.safetensors")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=f"plain: {name}: holds a number that is not finite"):
        quantize_folder(plain, tmp_path / "out" / "small", 8)
    assert list((tmp_path / "out").iterdir()) == []


def test_without_room_on_the_disk_nothing_is_begun(plain, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(UserError, match=r"small: needs .* GB of disk, 1e-06 GB are free: give --out on another disk"):
        quantize_folder(plain, tmp_path / "small", 8)
    assert not (tmp_path / "small").exists()


PEAK = """
import resource, sys
from pathlib import Path
from nano3.quantize.int_folder import quantize_folder
from nano3.model.hf.folder import load
import torch
torch.set_num_threads(1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
before = peak()
quantize_folder(Path(sys.argv[1]), Path(sys.argv[2]), 4)
print(peak() - before)
"""


@pytest.mark.slow
def test_the_full_width_in_the_memory_of_a_block(tmp_path):
    sizes = replace(load_model("nano3-30b-a3b"), pattern="EEE", n_experts=8, top_k=2, vocab_size=64)
    save(LM(sizes).to_dtype(torch.bfloat16).init_weights(0), tmp_path / "plain")
    arguments = [sys.executable, "-c", PEAK, str(tmp_path / "plain"), str(tmp_path / "small")]
    used = int(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout)
    block = (tmp_path / "plain" / "model.safetensors").stat().st_size / 3
    assert block > 150e6
    assert used < 1.5 * block
