"""Against folders that NVIDIA ModelOpt 0.47 wrote (tests/quantize/make_golden.py): bytes, scales, lists, logits."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nano3.model.hf.folder import load, read_config
from nano3.quantize.policy import NAMED, Selection, select
from nano3.quantize.rows import CalibrationRows
from nano3.quantize.run import quantize_folder

GOLDEN = Path(__file__).parents[1] / "golden" / "modelopt"
FLOAT32 = ("A_log", "D", "dt_bias", "gate.weight")
"""What nano3 keeps in float32 and ModelOpt's loader rounds to bf16."""


@pytest.fixture(scope="module", params=["selective", "everything"])
def case(request, tmp_path_factory) -> tuple[Path, Path, Selection]:
    """ModelOpt's case, nano3's folder of the same source and rows, and what was chosen."""
    golden, out = GOLDEN / request.param, tmp_path_factory.mktemp(request.param) / "out"
    selection = select(read_config(golden / "source"), NAMED[request.param])
    quantize_folder(golden / "source", out, selection, CalibrationRows(rows(golden).tolist()))
    return golden, out, selection


def rows(golden: Path) -> torch.Tensor:
    return torch.tensor(json.loads((golden / "rows.json").read_text()))


def both(case) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    golden, out, _ = case
    return load_file(out / "model.safetensors"), load_file(golden / "exported" / "model.safetensors")


def test_names_shapes_and_types_are_the_same(case):
    ours, theirs = both(case)
    assert ours.keys() == theirs.keys()
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    for name, tensor in ours.items():
        assert tensor.dtype == (torch.float32 if name.endswith(FLOAT32) else theirs[name].dtype), name


def test_every_byte_of_fp8_is_the_same(case):
    ours, theirs = both(case)
    found = {n for n, t in theirs.items() if t.dtype == torch.float8_e4m3fn}
    assert found == {f"{name}.weight" for name in case[2].modules}
    for name in found:
        assert torch.equal(ours[name].view(torch.uint8), theirs[name].view(torch.uint8)), name


def test_what_is_not_quantized_is_as_it_was(case):
    ours, theirs = both(case)
    for name, tensor in theirs.items():
        if tensor.dtype != torch.float8_e4m3fn and not name.endswith("_scale"):
            assert torch.equal(ours[name].float(), tensor.float()), name


def test_scales_are_the_same(case):
    """Of weights to the bit. Those of activations too where both compute these to the same bit: in the first block,
    whose input is normalised embeddings. Further on, random weights make more of a last bit than trained ones."""
    ours, theirs = both(case)
    activations = []
    for name in (n for n in theirs if n.endswith("_scale")):
        first = name.startswith("backbone.layers.0.") and ".out_proj." not in name and ".o_proj." not in name
        if first or name.endswith(".weight_scale"):
            assert torch.equal(ours[name], theirs[name]), name
        elif ".experts." not in name or ".experts.0." in name:  # the others have the same
            activations.append(abs(float(ours[name] / theirs[name]) - 1))
    assert max(activations) < 0.03
    assert sum(difference > 0.01 for difference in activations) <= len(activations) / 8


def test_excluded_modules_are_the_same_after_cleaning(case):
    """ModelOpt shortens names where all modules of a block are meant, and leaves its own mark behind them."""
    golden, out, selection = case
    ours = json.loads((out / "hf_quant_config.json").read_text())["quantization"]["exclude_modules"]
    listed = read_config(golden / "exported").quantization
    assert listed is not None
    everything = [*selection.modules, *ours]
    theirs = {name for name in everything if any(fnmatchcase(name, pattern) for pattern in listed.excluded)}
    assert set(ours) == theirs
    assert not any("*" in name for name in ours)


def test_both_files_say_what_modelopts_say(case):
    golden, out, _ = case
    ours, theirs = (sections(folder) for folder in (out, golden / "exported"))
    for section in (*ours, *theirs):
        section.pop("ignore", None)
        section.pop("producer", None)
        section.get("quantization", {}).pop("exclude_modules", None)
    assert ours == theirs


def sections(folder: Path) -> list[Any]:
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    return [config, json.loads((folder / "hf_quant_config.json").read_text())]


def test_each_block_computes_what_modelopt_simulates(case):
    """Of its folder, given what enters a block there: the energy of the difference is at most a tenth of that of
    quantizing, in all blocks together. In one block it may be half: where the largest input has few bits, many
    quotients lie in the middle between two e4m3 numbers, and dividing and multiplying choose differently."""
    golden, _, selection = case
    hidden = load_file(golden / "simulated.safetensors")["hidden"]
    quantized, plain = (load(golden / name, torch.bfloat16) for name in ("exported", "source"))
    quantized.use_fp8_cache()
    touched = {int(name.split(".")[2]) for name in selection.modules} | set(selection.cached)
    errors = []
    for i, (x, expected) in enumerate(pairwise(hidden)):
        with torch.inference_mode():
            own, before = (energy(model.blocks[i](x)[0], expected) for model in (quantized, plain))
        assert own <= 0.5 * before if i in touched else own <= 1e-4 * energy(expected, x), i
        errors += [(own, before)] if i in touched else []
    assert sum(own for own, _ in errors) <= 0.1 * sum(before for _, before in errors)


def energy(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of the difference."""
    return float((a.float() - b.float()).square().sum())


def test_logits_are_those_that_modelopt_simulates(case):
    """Over all blocks. What differs in the last bit before a rounding to e4m3 is a whole step apart after it now and
    then, and a router may choose otherwise, so random weights allow no more than the half."""
    golden, out, _ = case
    stored = load_file(golden / "simulated.safetensors")
    plain, simulated = (stored[name].float().log_softmax(-1) for name in ("plain", "simulated"))
    for folder in (out, golden / "exported"):
        with torch.inference_mode():
            logits = load(folder, torch.bfloat16).use_fp8_cache()(rows(golden)[:1, : simulated.shape[1]])
        assert divergence(simulated, logits.float().log_softmax(-1)) < 0.5 * divergence(plain, simulated)


def divergence(p: torch.Tensor, q: torch.Tensor) -> float:
    """KL of two distributions given as log-probabilities, a token."""
    return float((p.exp() * (p - q)).sum(-1).mean())
