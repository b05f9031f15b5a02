"""Quantizing a folder: what is written, going on after a kill, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nano3.config.errors import UserError
from nano3.model.hf.folder import load, read_config, save
from nano3.model.lm import LM
from nano3.quantize import run as running
from nano3.quantize.policy import NAMED, Policy, select
from nano3.quantize.rows import CalibrationRows
from nano3.quantize.run import quantize_folder, work_folder

ROWS = CalibrationRows(torch.randint(0, 97, (7, 40), generator=torch.Generator().manual_seed(2)).tolist())
E4M3 = torch.float8_e4m3fn


@pytest.fixture
def source(small_model: LM, tmp_path: Path) -> Path:
    save(small_model, tmp_path / "source")
    (tmp_path / "source" / "tokenizer_config.json").write_text("{}")
    return tmp_path / "source"


def quantized(source: Path, out: Path, policy: Policy | None = None, **options) -> dict[str, torch.Tensor]:
    quantize_folder(source, out, select(read_config(source), policy or Policy()), ROWS, **options)
    return {name: value for file in out.glob("*.safetensors") for name, value in load_file(file).items()}


def test_the_folder_loads_computes_and_is_written_back_as_it_is(source, tmp_path):
    tensors = quantized(source, tmp_path / "out")
    model = load(tmp_path / "out")
    tokens = torch.tensor(ROWS.rows[0])[None]
    with torch.inference_mode():
        found, before = (m(tokens).float().log_softmax(-1) for m in (model, load(source, torch.bfloat16)))
    assert float((before.exp() * (before - found)).sum(-1).mean()) < 0.2
    save(model, tmp_path / "again")
    for name, value in load_file(tmp_path / "again" / "model.safetensors").items():
        assert torch.equal(value.view(-1).view(torch.uint8), tensors[name].view(-1).view(torch.uint8)), name
    assert (tmp_path / "out" / "tokenizer_config.json").read_text() == "{}"
    assert not list(tmp_path.glob(".*"))


def test_input_scales_are_the_largest_inputs_of_the_rows(source, tmp_path):
    tensors = quantized(source, tmp_path / "out", NAMED["everything"])
    model, seen = load(source, torch.bfloat16), {}
    for name in (
        "blocks.0.mixer.in_proj",
        "blocks.0.mixer.out_proj",
        "blocks.3.mixer.down_proj",
        "blocks.2.mixer.k_proj",
    ):
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, x, name=name: seen.__setitem__(name, max(seen.get(name, 0.0), float(x[0].abs().max())))
        )
    with torch.inference_mode():
        for row in ROWS.rows:
            model(torch.tensor(row)[None])
    for name, largest in seen.items():
        scale = tensors[name.replace("blocks", "backbone.layers") + ".input_scale"]
        assert float(scale) * 448 == pytest.approx(largest, rel=0.02), name


def test_all_experts_of_a_projection_share_the_largest_input_scale(source, tmp_path):
    tensors = quantized(source, tmp_path / "out")
    for block in (1, 5):
        for projection in ("up_proj", "down_proj"):
            scales = {float(tensors[f"backbone.layers.{block}.mixer.experts.{e}.{projection}.input_scale"])
                      for e in range(5)}  # fmt: skip
            assert len(scales) == 1
    up, down = (float(tensors[f"backbone.layers.1.mixer.experts.0.{p}_proj.input_scale"]) for p in ("up", "down"))
    assert up == float(tensors["backbone.layers.1.mixer.shared_experts.up_proj.input_scale"])
    assert down != up


def test_experts_without_tokens_are_told(source, tmp_path, small_model):
    bias = small_model.expert_biases()[0]
    bias.copy_(torch.tensor([-100.0, 0, 0, 0, -100.0]))
    save(small_model, source)
    made = quantize_folder(source, tmp_path / "out", select(read_config(source), Policy()), ROWS)
    assert made.silent[1] == [0, 4]
    assert load(tmp_path / "out")  # their scales are whole


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 20_000])
def test_a_run_that_was_killed_ends_with_the_same_bytes(source, tmp_path, monkeypatch, shard_bytes):
    quantized(source, tmp_path / "whole", shard_bytes=shard_bytes)
    said: list[str] = []
    for last in (-1, 0, 2, 4):
        killed(monkeypatch, last, lambda: quantized(source, tmp_path / "out", shard_bytes=shard_bytes, say=said.append))
        assert not (tmp_path / "out").exists()
    quantized(source, tmp_path / "out", shard_bytes=shard_bytes, say=said.append)
    assert [line.split(" (")[0] for line in said] == [f"going on after {n} of 6 blocks" for n in (0, 0, 2, 4)]
    same(tmp_path / "whole", tmp_path / "out")
    assert not work_folder(tmp_path / "out").exists()


def killed(monkeypatch, part: int, quantizing: Callable) -> None:
    """Quantizing, ended when the tensors of a part have been written and nobody has written down that they have."""
    with monkeypatch.context() as patch:
        patch.setattr(running._Run, "_write", dying(running._Run._write, part))
        with pytest.raises(KeyboardInterrupt):
            quantizing()


def dying(write: Callable, part: int) -> Callable:
    prefix = "embeddings." if part < 0 else f"blocks.{part}."

    def wrapped(self, begin, largest):
        write(self, begin, largest)
        if begin == prefix:
            raise KeyboardInterrupt

    return wrapped


def same(first: Path, second: Path) -> None:
    names = sorted(file.name for file in first.iterdir())
    assert names == sorted(file.name for file in second.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_other_rows_begin_anew(source, tmp_path, monkeypatch):
    killed(monkeypatch, 3, lambda: quantized(source, tmp_path / "out"))
    other, said = CalibrationRows([row.tolist() for row in ROWS.rows[:3]]), []
    selection = select(read_config(source), Policy())
    quantize_folder(source, tmp_path / "out", selection, other, said.append)
    assert said == []
    quantize_folder(source, tmp_path / "fresh", selection, other)
    same(tmp_path / "fresh", tmp_path / "out")


def test_rows_are_looked_at_one_by_one_however_they_are_packed(source, tmp_path, monkeypatch):
    packed = quantized(source, tmp_path / "packed")
    monkeypatch.setattr("nano3.quantize.rows.BATCH_TOKENS", 1)
    for name, value in quantized(source, tmp_path / "single").items():
        if name.endswith("_scale"):
            assert float(value) == pytest.approx(float(packed[name]), rel=0.02), name


def test_a_quantized_head_has_the_scale_of_what_the_last_norm_gives(source, tmp_path):
    tensors = quantized(source, tmp_path / "out", Policy(rules={"lm_head": "fp8"}))
    with torch.inference_mode():
        largest = max(float(load(source, torch.bfloat16).hidden(torch.tensor(row)[None]).x.abs().max())
                      for row in ROWS.rows)  # fmt: skip
    assert tensors["lm_head.weight"].dtype == E4M3
    assert float(tensors["lm_head.input_scale"]) * 448 == pytest.approx(largest, rel=0.02)
    assert load(tmp_path / "out")(torch.tensor(ROWS.rows[0])[None]).isfinite().all()


def test_only_the_cache_may_be_quantized(source, tmp_path):
    tensors = quantized(source, tmp_path / "out", Policy(rules={"*": "bf16"}))
    assert not any(value.dtype == E4M3 for value in tensors.values())
    assert {n for n in tensors if n.endswith("_scale")} == {
        "backbone.layers.2.mixer.k_proj.k_scale", "backbone.layers.2.mixer.v_proj.v_scale"
    }  # fmt: skip
    assert read_config(tmp_path / "out").quantization.kv_cache == "FP8"


def test_what_cannot_be_is_refused_before_any_work(source, tmp_path):
    cfg = read_config(source)
    with pytest.raises(UserError, match="nothing would be quantized"):
        quantized(source, tmp_path / "out", Policy(kv="bf16", rules={"*": "bf16"}))
    with pytest.raises(UserError, match="is the model itself"):
        quantized(source, source)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"holds thesis\.tex"):
        quantized(source, tmp_path / "mine")
    with pytest.raises(UserError, match="a calibration row has token 97; the model has 97"):
        quantize_folder(source, tmp_path / "out", select(cfg, Policy()), CalibrationRows([[1, 97]]))
    quantized(source, tmp_path / "out")
    with pytest.raises(UserError, match="it is quantized, and wanted here as it was before"):
        quantize_folder(tmp_path / "out", tmp_path / "twice", select(cfg, Policy()), ROWS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "out", "source"]


def test_weights_that_are_not_finite_are_named(source, tmp_path):
    tensors = load_file(source / "model.safetensors")
    name = "backbone.layers.1.mixer.experts.2.up_proj.weight"
    tensors[name][3, 3] = torch.nan
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(UserError, match=f"{name} holds a number that is not finite"):
        quantized(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_of_zeros_can_be_read_again(source, tmp_path):
    tensors = load_file(source / "model.safetensors")
    save_file({n: t.zero_() if "shared_experts" in n else t for n, t in tensors.items()}, source / "model.safetensors")
    made = quantize_folder(source, tmp_path / "out", select(read_config(source), Policy()), ROWS)
    assert "backbone.layers.1.mixer.shared_experts.down_proj" in made.unused
    assert load(tmp_path / "out")


def test_what_is_there_is_kept_until_the_new_model_is_whole(source, tmp_path, monkeypatch):
    quantized(source, tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    killed(monkeypatch, 5, lambda: quantized(source, tmp_path / "out", NAMED["everything"]))
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    quantized(source, tmp_path / "out", NAMED["everything"])
    assert (tmp_path / "out" / "model.safetensors").read_bytes() != before


def test_the_index_of_shards_is_right(source, tmp_path):
    quantized(source, tmp_path / "out", shard_bytes=20_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    for file in (tmp_path / "out").glob("*.safetensors"):
        assert {n for n, where in index["weight_map"].items() if where == file.name} == set(load_file(file))
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    assert load(tmp_path / "copy")


def test_activations_that_are_no_numbers_are_refused_by_block(small_model, tmp_path):
    """No folder is written whose scales no reader takes."""
    with torch.no_grad():
        small_model.get_parameter("blocks.3.mixer.up_proj.weight").mul_(1e30)
    save(small_model, tmp_path / "source")
    with pytest.raises(UserError, match=r"source: block 3: down_proj has inf as input or output"):
        quantized(tmp_path / "source", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_norm_that_is_nan_is_named(small_model, tmp_path):
    with torch.no_grad():
        small_model.get_parameter("blocks.3.norm.weight")[1] = torch.nan
    save(small_model, tmp_path / "source")
    with pytest.raises(UserError, match=r"backbone.layers.3.norm.weight holds a number that is not finite"):
        quantized(tmp_path / "source", tmp_path / "out")
