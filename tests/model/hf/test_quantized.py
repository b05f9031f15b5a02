"""Folders with FP8 weights: what is read, how it computes, what is written back, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from nano3.kernels import Scaled
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from nano3.bench.costs import bytes_each
from nano3.bench.native import open_model
from nano3.cli.app import app
from nano3.config.errors import UserError
from nano3.config.model import Quantization
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.engine import Engine
from nano3.engine.protocol import run
from nano3.engine.request import Request, Sampling
from nano3.model import step
from nano3.model.head import log_probs
from nano3.model.hf.config import read_config
from nano3.model.hf.folder import check_stored, fill, load, save, stored_dtype, weight_bytes
from nano3.model.layers import Linear
from nano3.model.lm import LM

E4M3 = torch.float8_e4m3fn
TOKENS = torch.randint(0, 97, (2, 21), generator=torch.Generator().manual_seed(3))
QUANTIZED = ("in_proj", "out_proj", "up_proj", "down_proj")
"""Of block 0, 1 and 3; block 4 and attention stay as they were."""
MISTAKE = "\0backbone.pt_name_sentinel"
"""What ModelOpt 0.47 puts into names."""
SECTION = {
    "quant_method": "modelopt",
    "quant_algo": "FP8",
    "kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"},
    "ignore": [
        "lm_head.\0backbone.pt_name_sentinel",
        "backbone.layers.2.\0backbone.pt_name_sentinel*",
        "backbone.norm",
    ],
}


def fp8_folder(model: LM, folder: Path, inputs: bool = True) -> dict[str, torch.Tensor]:
    """A folder as ModelOpt exports it, made from the published tensors alone; returns them as they were before."""
    save(model, folder, dtype=torch.bfloat16)
    plain = load_file(folder / "model.safetensors")
    tensors = {}
    for name, tensor in plain.items():
        parts = name.split(".")
        if len(parts) > 3 and parts[2] in "013" and parts[-2] in QUANTIZED:
            stem, scale = name.removesuffix(".weight"), tensor.abs().amax().float() / 448
            tensors |= {name: (tensor / scale).to(E4M3), f"{stem}.weight_scale": scale}
            if inputs:
                # Experts' own differ, as older exports have it: the largest counts for all.
                tensors[f"{stem}.input_scale"] = torch.tensor(0.01 if parts[-3] != "2" else 0.02)
        else:
            tensors[name] = tensor
    for letter in "kv":
        tensors[f"backbone.layers.2.mixer.{letter}_proj.{letter}_scale"] = torch.tensor(0.03)
    save_file(tensors, folder / "model.safetensors")
    rewrite_config(folder, quantization_config=SECTION)
    return plain


def rewrite_config(folder: Path, **keys) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def part(model: LM, name: str) -> Any:
    return model.get_submodule(name)


@pytest.fixture
def folder(small_model, tmp_path) -> Path:
    fp8_folder(small_model, tmp_path / "fp8")
    return tmp_path / "fp8"


def test_a_folder_is_read_as_it_is_stored(folder):
    model = load(folder)
    assert model.get_parameter("blocks.0.mixer.in_proj.weight").dtype == E4M3
    assert model.get_parameter("blocks.1.mixer.experts.up_proj").dtype == E4M3
    assert model.get_parameter("blocks.4.mixer.in_proj.weight").dtype == torch.bfloat16
    assert not model.get_parameter("blocks.0.mixer.in_proj.weight").requires_grad
    assert model.get_parameter("lm_head.weight").requires_grad
    assert model.get_buffer("blocks.1.mixer.experts.up_proj_scale").shape == (5,)
    assert model.get_buffer("blocks.2.mixer.k_proj.k_scale").item() == pytest.approx(0.03)
    assert model.cfg.quantization == Quantization("FP8", "FP8", ("lm_head", "backbone.layers.2.*", "backbone.norm"))
    wide = load(folder, torch.float32)
    assert wide.get_parameter("blocks.0.mixer.in_proj.weight").dtype == E4M3
    assert wide.dtype == wide.compute_dtype == torch.float32
    assert wide.to_dtype(torch.bfloat16).get_parameter("blocks.0.mixer.in_proj.weight").dtype == E4M3


def test_weight_only_fp8_computes_with_the_dequantized_weights(small_model, tmp_path):
    fp8_folder(small_model, tmp_path / "fp8", inputs=False)
    plain = load_file(tmp_path / "fp8" / "model.safetensors")
    dequantized = {n: t.float() * plain[f"{n}_scale"] if t.dtype == E4M3 else t for n, t in plain.items()}
    save(small_model, tmp_path / "plain")
    save_file({n: t.float() for n, t in dequantized.items() if not n.endswith("_scale")},
              tmp_path / "plain" / "model.safetensors")  # fmt: skip
    got, expected = (load(tmp_path / name, torch.float32)(TOKENS) for name in ("fp8", "plain"))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_activations_are_rounded_with_the_stored_scale(folder):
    model = load(folder, torch.float32)
    x = torch.randn(3, 32)
    projection = part(model, "blocks.0.mixer.in_proj")
    rounded = (x / 0.01).clamp(-448, 448).to(E4M3).float() * 0.01
    expected = rounded @ projection.operand().dequantized().T
    torch.testing.assert_close(projection(x), expected, atol=1e-4, rtol=1e-4)
    assert float(part(model, "blocks.1.mixer.experts").operand("up_proj").input_scale) == pytest.approx(0.02)


def test_room_is_made_for_what_is_held(small_model, tmp_path, folder):
    model = load(folder)
    held = sum(p.nbytes for p in model.parameters())
    assert held == pytest.approx(weight_bytes(folder, torch.bfloat16), rel=0.05)
    assert held < 0.85 * sum(2 * p.numel() for p in model.parameters())


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 20_000])
def test_a_round_trip_keeps_every_bit(folder, tmp_path, shard_bytes):
    save(load(folder), tmp_path / "again", max_shard_bytes=shard_bytes)
    before = load_file(folder / "model.safetensors")
    after = {n: t for f in (tmp_path / "again").glob("*.safetensors") for n, t in load_file(f).items()}
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype, name
        assert after[name].shape == tensor.shape, name
        assert torch.equal(after[name].view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8)), name
    second = load(tmp_path / "again")
    assert torch.equal(second(TOKENS), load(folder)(TOKENS))
    save(second, tmp_path / "again")  # a folder with hf_quant_config.json may be replaced


def test_what_is_quantized_is_written_down_in_both_files(folder, tmp_path):
    save(load(folder), tmp_path / "again")
    section = json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"]
    assert (section["quant_method"], section["quant_algo"]) == ("modelopt", "FP8")
    assert section["kv_cache_scheme"] == {"dynamic": False, "num_bits": 8, "type": "float"}
    assert section["config_groups"]["group_0"]["input_activations"]["num_bits"] == 8
    own = json.loads((tmp_path / "again" / "hf_quant_config.json").read_text())["quantization"]
    assert own["exclude_modules"] == section["ignore"]
    assert {"lm_head", "backbone.layers.4.mixer.experts.*"} & set(section["ignore"]) == {"lm_head"}
    assert "backbone.layers.4.mixer.in_proj" in section["ignore"]
    assert "backbone.layers.2.mixer.q_proj" in section["ignore"]
    assert "backbone.layers.5.mixer.experts.*" in section["ignore"]
    assert not any(name.startswith("backbone.layers.0.mixer.in_proj") for name in section["ignore"])
    rewrite_config(tmp_path / "again", quantization_config=None)
    found = read_config(tmp_path / "again").quantization  # from hf_quant_config.json alone
    assert found == Quantization("FP8", "FP8", tuple(section["ignore"]))


def test_a_quantized_output_projection_counts_in_every_log_probability(small_model, tmp_path):
    weight = small_model.lm_head.weight.detach()
    scale = weight.abs().amax() / 448
    small_model.lm_head.use_scaled(Scaled((weight / scale).to(E4M3), scale))
    logits = small_model(TOKENS)
    assert not torch.allclose(logits, torch.nn.functional.linear(small_model.hidden(TOKENS).x, weight), atol=1e-3)
    expected = logits.log_softmax(-1).gather(-1, TOKENS[..., None])[..., 0]
    torch.testing.assert_close(small_model.log_probs(TOKENS, TOKENS), expected, atol=1e-5, rtol=1e-5)
    save(small_model, tmp_path / "m", dtype=torch.bfloat16)
    assert stored_dtype(tmp_path / "m") == torch.bfloat16
    assert load(tmp_path / "m").lm_head.weight.dtype == E4M3


def test_logits_of_a_quantized_output_projection_are_not_rounded_to_bfloat16():
    head, hidden = Linear(64, 300), torch.randn(40, 64).bfloat16() * 6
    weight = torch.randn(300, 64)
    scale = weight.abs().amax() / 448
    head.use_scaled(Scaled((weight / scale).to(E4M3), scale))
    expected = (hidden.double() @ head.operand().dequantized(torch.float64).T).log_softmax(-1)
    targets = torch.arange(40)
    found = log_probs(head, hidden, targets)
    torch.testing.assert_close(found.double(), expected.gather(1, targets[:, None])[:, 0], atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), 0.0, -1.0, float("inf")])
def test_scales_that_are_none_are_refused(bad):
    data, good = torch.ones(5, 4).to(E4M3), torch.tensor(0.5)
    for weight in (Scaled(data, torch.tensor(bad)), Scaled(data, good, torch.tensor(bad))):
        with pytest.raises(ValueError, match="finite and above 0"):
            Linear(4, 5).use_scaled(weight)


def test_a_quantized_model_decodes_in_one_call_as_a_plain_one_does(small_config, tmp_path):
    fp8_folder(LM(replace(small_config, vocab_size=300)).init_weights(1).eval(), tmp_path / "fp8")
    model = load(tmp_path / "fp8", torch.float32)
    prompt = tuple(TOKENS[0].tolist())
    engine = Engine(model, Tokenizer.train(["a b"], 263), memory=8 << 20, page_size=8, max_context=64)
    (output,) = run(engine, [Request("one", prompt, Sampling(temperature=0.0, max_tokens=6, ignore_eos=True))])[0]
    with torch.inference_mode():
        log_probs = model(torch.tensor([[*prompt, *output.ids]])).log_softmax(-1)[0, len(prompt) - 1 : -1]
    expected = log_probs.gather(1, torch.tensor(output.ids)[:, None])[:, 0].tolist()
    assert [token.log_prob for token in output.tokens] == pytest.approx(expected, abs=1e-4)
    assert step.explain(model) == step.explain()


def test_info_tells_how_a_folder_is_quantized_and_what_follows(folder):
    result = CliRunner().invoke(app, ["info", "--model", str(folder), "--backends", "--json"])
    facts = json.loads(result.stdout)
    assert facts["config"]["quantization"]["algorithm"] == "FP8"
    (chosen,) = [row for row in facts["backends"] if row["op"] == "decoding step"]
    assert (chosen["backend"] == "cpu") == (step.why_not() is None)
    assert "FP8, FP8 cache" in CliRunner().invoke(app, ["info", "--model", str(folder)]).stdout


def test_bench_counts_bytes_as_they_are_stored(folder):
    each = bytes_each(open_model(str(folder)))
    assert each["embeddings"] == 2
    assert 1 < each["experts"] < 2  # of two blocks one is quantized


UP = "backbone.layers.1.mixer.experts.3.up_proj.weight"
INPUT = UP.replace("weight", "input_scale")


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [
        (UP, torch.int8, f"{UP} is stored as I8; nano3 reads F32, BF16, F16, and F8_E4M3 with a scale: give"),
        (UP, torch.uint8, f"{UP} is stored as U8; nano3 reads"),
        (UP, torch.float64, f"{UP} is stored as F64; nano3 reads"),
        (UP, E4M3, f"{UP} is stored as F8_E4M3 without {UP}_scale, so its numbers mean nothing; copy"),
        (UP, torch.float8_e5m2, f"{UP} is stored as F8_E5M2; nano3 reads"),
        ("lm_head.weight", torch.int8, "lm_head.weight is stored as I8; nano3 reads"),
        ("lm_head.weight", E4M3, "lm_head.weight is stored as F8_E4M3 without lm_head.weight_scale"),
        ("backbone.layers.0.mixer.conv1d.weight", torch.int64, "conv1d.weight is stored as I64"),
        ("backbone.layers.0.mixer.A_log", torch.bool, "A_log is stored as BOOL"),
        ("backbone.layers.1.mixer.gate.e_score_correction_bias", torch.int32, "correction_bias is stored as I32"),
    ],
)
def test_stored_numbers_that_are_no_weights_are_refused(small_model, tmp_path, name, dtype, message):
    save(small_model, tmp_path / "m")
    rewrite(tmp_path / "m", lambda t: t.update({name: t[name].mul(100).to(dtype)}))
    for read in (load, lambda m: fill(small_model, m), lambda m: check_stored(small_model, m)):
        with pytest.raises(UserError) as error:
            read(tmp_path / "m")
        assert message in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [UP, "lm_head.weight", "backbone.layers.0.mixer.A_log"])
def test_float16_is_read_everywhere(small_model, tmp_path, name):
    save(small_model, tmp_path / "m")
    rewrite(tmp_path / "m", lambda t: t.update({name: t[name].half()}))
    model = load(tmp_path / "m")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    torch.testing.assert_close(model(TOKENS), small_model(TOKENS), atol=0.05, rtol=0.05)
    rewrite(tmp_path / "m", lambda t: t.update({n: v.half() for n, v in t.items()}))
    assert {p.dtype for p in load(tmp_path / "m").parameters()} == {torch.float32}


def test_two_names_of_one_tensor_are_refused(small_model, tmp_path):
    save(small_model, tmp_path / "m")
    rewrite(tmp_path / "m", lambda t: t.update({"model.norm_f.weight": t["backbone.norm_f.weight"] * 2}))
    with pytest.raises(UserError, match=r"both (backbone|model)\.norm_f\.weight and (backbone|model)\.norm_f\.weight"):
        load(tmp_path / "m")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({UP: t[UP].float()}), f"{UP} is stored as F32, others of its block as F8_E4M3"),
        (lambda t: t.pop(INPUT), "1 tensor missing, first .*experts.3.up_proj.input_scale"),
        (lambda t: t.update({f"{UP}_scale": torch.tensor(0.0)}), f"{UP}_scale is 0.0, which is no scale"),
        (lambda t: t.update({f"{UP}_scale": torch.tensor(torch.nan)}), f"{UP}_scale is nan, which is no scale"),
        (lambda t: t.update({f"{UP}_scale": torch.ones(20)}), r"weight_scale has shape \(20,\)"),
    ],
)
def test_damaged_scales_are_named(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(UserError, match=message):
        load(folder)


def test_scales_of_one_dimension_are_scales_too(folder):
    expected = load(folder)(TOKENS)
    rewrite(folder, lambda t: t.update({n: v.reshape(1) for n, v in t.items() if n.endswith("_scale")}))
    assert torch.equal(load(folder)(TOKENS), expected)


def test_training_does_not_start_from_quantized_weights(small_model, folder):
    for start in (check_stored, fill):
        with pytest.raises(UserError, match=r"is stored as F8_E4M3 with .*_scale: it is quantized.*unquantized folder"):
            start(small_model, folder)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"quant_method": "awq", "bits": 4}, "quantization_config: is awq; nano3 reads modelopt FP8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "is modelopt NVFP4; nano3 reads modelopt FP8"),
        (SECTION | {"kv_cache_scheme": None, "kv_cache_quant_algo": "NVFP4"}, "modelopt FP8 with a cache of NVFP4"),
        ([], "quantization_config: expected a JSON object"),
        (SECTION | {"ignore": "lm_head"}, "list of excluded modules must hold names"),
    ],
)
def test_other_quantizations_are_refused_by_name(folder, section, message):
    rewrite_config(folder, quantization_config=section)
    with pytest.raises(UserError, match=message):
        read_config(folder)


def test_a_weight_that_lost_its_type_is_refused(folder):
    model = load(folder).to(torch.float32)  # PyTorch's own, which knows no scales
    with pytest.raises(ValueError, match=r"a scaled weight has data .* of float8_e4m3fn, .*, not .* of float32"):
        model(TOKENS)
