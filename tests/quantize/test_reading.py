"""Folders of other programs: compressed-tensors' layout of the same tensors, and lists and scales that are missing."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nano3.config.errors import UserError
from nano3.model.hf.folder import load, read_config

GOLDEN = Path(__file__).parents[1] / "golden" / "modelopt" / "selective" / "exported"
TOKENS = torch.arange(48)[None]
FP8 = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {"group_0": {"weights": FP8, "input_activations": FP8, "targets": ["Linear"]}},
    "kv_cache_scheme": FP8,
    "ignore": ["lm_head"],
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """ModelOpt's, to be changed."""
    shutil.copytree(GOLDEN, tmp_path / "fp8")
    return tmp_path / "fp8"


def change(folder: Path, section: Any, tensors: Callable[[dict[str, torch.Tensor]], object] = len) -> None:
    (folder / "hf_quant_config.json").unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": section}))
    stored = load_file(folder / "model.safetensors")
    tensors(stored)
    save_file(stored, folder / "model.safetensors")


def logits(folder: Path) -> torch.Tensor:
    with torch.inference_mode():
        return load(folder).use_fp8_cache()(TOKENS)


def test_compressed_tensors_lays_out_the_same_numbers(folder):
    expected = logits(folder)
    change(folder, COMPRESSED, lambda t: t.update({n: v.reshape(1) for n, v in t.items() if n.endswith("_scale")}))
    assert torch.equal(logits(folder), expected)
    found = read_config(folder).quantization
    assert found is not None
    assert (found.algorithm, found.kv_cache) == ("FP8", "FP8")


def test_scales_of_keys_and_values_beside_the_projections_are_the_same(folder):
    """Where llm-compressor puts them."""
    expected = logits(folder)
    stored = load_file(folder / "model.safetensors")
    moved = {re.sub(r"[kv]_proj\.(?=[kv]_scale$)", "", name): value for name, value in stored.items()}
    assert any(name.endswith("mixer.k_scale") for name in moved)
    save_file(moved, folder / "model.safetensors")
    assert torch.equal(logits(folder), expected)


@pytest.mark.parametrize("wrong", [{"strategy": "channel"}, {"num_bits": 4}, {"dynamic": True}])
def test_other_floats_are_refused(folder, wrong):
    section = COMPRESSED | {"config_groups": {"group_0": {"weights": FP8 | wrong}}}
    change(folder, section)
    with pytest.raises(UserError, match="nano3 reads FP8 with one static scale a matrix"):
        load(folder)


def test_a_block_without_scales_of_its_cache_is_named_once(folder, capsys):
    section = json.loads((folder / "config.json").read_text())["quantization_config"]
    logits(folder)
    assert capsys.readouterr().err == ""
    change(folder, section, lambda t: [t.pop(n) for n in list(t) if n.endswith((".k_scale", ".v_scale"))])
    model = load(folder)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("no scales of keys and values in block 5: an FP8 cache cannot be used")
    with pytest.raises(ValueError, match="block 5 has no scales"):
        model.use_fp8_cache()


def test_the_largest_input_scale_counts_for_all_experts(folder):
    section = json.loads((folder / "config.json").read_text())["quantization_config"]
    names = [f"backbone.layers.1.mixer.experts.{e}.up_proj.input_scale" for e in range(4)]
    largest = float(load_file(folder / "model.safetensors")[names[0]])
    change(folder, section, lambda t: t.update({n: t[n] / (i + 1) for i, n in enumerate(names)}))
    experts = load(folder).get_submodule("blocks.1.mixer.experts")
    assert float(experts.operand("up_proj").input_scale) == largest
