"""Folders with matrices of integers: what lies in them, what is read back, what is refused, and that they generate."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from nano3.kernels import quantize_int4, quantize_int8
from nano3.kernels.integers import unpack
from safetensors.torch import load_file, save_file

from nano3.config.errors import UserError
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.engine import Engine
from nano3.engine.protocol import run
from nano3.engine.request import Request, Sampling
from nano3.model.hf.config import read_config
from nano3.model.hf.folder import load, save, stored_dtype, weight_bytes
from nano3.model.lm import LM
from nano3.quantize.int_formats import quantize_integers

TOKENS = torch.randint(0, 97, (2, 21), generator=torch.Generator().manual_seed(3))
UP = "backbone.layers.1.mixer.experts.3.up_proj"
BITS = [8, 4]
DIVIDED = {"d_expert": 64, "d_shared": 32, "d_ff": 32, "mamba_n_heads": 8}
"""Sizes of rows that divide into groups of 32."""


@pytest.fixture(params=BITS)
def bits(request) -> int:
    return request.param


@pytest.fixture
def plain(small_config) -> LM:
    sizes = replace(small_config, **DIVIDED, vocab_size=300)
    return LM(sizes).init_weights(1).eval().to_dtype(torch.bfloat16)


@pytest.fixture
def folder(plain, bits, tmp_path) -> Path:
    quantize_integers(plain, bits)
    save(plain, tmp_path / "m")
    return tmp_path / "m"


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {n: t for f in folder.glob("*.safetensors") for n, t in load_file(f).items()}


def test_a_folder_holds_what_compressed_tensors_describes(plain, bits, tmp_path):
    matrix = plain.get_parameter("blocks.1.mixer.experts.up_proj")[3].detach().clone()
    quantize_integers(plain, bits)
    save(plain, tmp_path / "m")
    tensors, config = tensors_of(tmp_path / "m"), json.loads((tmp_path / "m" / "config.json").read_text())
    section = config["quantization_config"]
    (group,) = section["config_groups"].values()
    assert section["quant_method"] == "compressed-tensors"
    assert not (tmp_path / "m" / "hf_quant_config.json").exists()
    assert group["weights"]["num_bits"] == bits
    assert "lm_head" not in section["ignore"]
    assert "backbone.embeddings" in section["ignore"]
    assert "backbone.layers.1.mixer.gate" in section["ignore"]
    if bits == 8:
        expected = quantize_int8(matrix)
        assert section["format"] == "int-quantized"
        assert group["input_activations"] | {"strategy": "token", "dynamic": True} == group["input_activations"]
        assert torch.equal(tensors[f"{UP}.weight"], expected.data)
        assert torch.equal(tensors[f"{UP}.weight_scale"], expected.scale[:, None])
        assert f"{UP}.weight_packed" not in tensors
    else:
        expected = quantize_int4(matrix)
        assert section["format"] == "pack-quantized"
        assert (group["weights"]["group_size"], group["input_activations"]) == (32, None)
        words = tensors[f"{UP}.weight_packed"]
        assert words.dtype == torch.int32
        numbers = torch.stack([(words >> 4 * i & 15) - 8 for i in range(8)], -1).flatten(1)
        assert torch.equal(numbers, unpack(expected.data).int())
        assert torch.equal(tensors[f"{UP}.weight_scale"], expected.scale)
        assert tensors[f"{UP}.weight_shape"].tolist() == list(matrix.shape)
        assert f"{UP}.weight" not in tensors


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 20_000])
def test_a_round_trip_keeps_every_bit(folder, tmp_path, shard_bytes):
    first = load(folder)
    save(first, tmp_path / "again", max_shard_bytes=shard_bytes)
    before, after = tensors_of(folder), tensors_of(tmp_path / "again")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype, name
        assert torch.equal(after[name], tensor), name
    second = load(tmp_path / "again")
    assert torch.equal(second(TOKENS), first(TOKENS))
    assert second.cfg == first.cfg
    save(second, tmp_path / "again")  # and it may be replaced


def test_it_computes_as_the_model_that_was_saved(plain, folder, bits):
    model = load(folder)
    assert torch.equal(model(TOKENS), plain(TOKENS))
    assert model.cfg.quantization is not None
    assert model.cfg.quantization.algorithm == f"INT{bits}"
    assert model.get_parameter("lm_head.weight").dtype == (torch.int8 if bits == 8 else torch.uint8)
    assert stored_dtype(folder) == torch.bfloat16
    held = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    assert weight_bytes(folder, torch.bfloat16) == pytest.approx(held, rel=0.05)


def test_logits_are_near_those_of_the_plain_model(small_config, bits):
    plain, quantized = (LM(replace(small_config, **DIVIDED)).init_weights(1).eval() for _ in range(2))
    quantize_integers(quantized, bits)
    expected = plain(TOKENS)
    error = (quantized(TOKENS) - expected).norm() / expected.norm()
    assert error < (0.1 if bits == 8 else 0.6)


def test_the_engine_generates_what_the_model_says(folder):
    model = load(folder, torch.float32)
    prompt = tuple(TOKENS[0].tolist())
    engine = Engine(model, Tokenizer.train(["a b"], 263), memory=8 << 20, page_size=8, max_context=64)
    (output,) = run(engine, [Request("one", prompt, Sampling(temperature=0.0, max_tokens=6, ignore_eos=True))])[0]
    with torch.inference_mode():
        log_probs = model(torch.tensor([[*prompt, *output.ids]])).log_softmax(-1)[0, len(prompt) - 1 : -1]
    expected = log_probs.gather(1, torch.tensor(output.ids)[:, None])[:, 0].tolist()
    # An activation at the edge between two integers may fall to either side.
    assert [token.log_prob for token in output.tokens] == pytest.approx(expected, abs=3e-2)


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("bits", BITS, indirect=True)
@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_a_scale_that_is_none_is_refused(folder, bits, value):
    def change(tensors):
        tensors[f"{UP}.weight_scale"][2, 0] = value

    rewrite(folder, change)
    if bits == 4 and value == 0:  # a group of zeros
        load(folder)
        return
    with pytest.raises(UserError, match=rf"{UP}.weight_scale is {value}, which is no scale"):
        load(folder)


@pytest.mark.parametrize("bits", [4], indirect=True)
def test_scales_in_bfloat16_are_read(folder):
    before = load(folder)(TOKENS)
    rewrite(folder, lambda ts: ts.update({n: t.bfloat16() for n, t in ts.items() if n.endswith("weight_scale")}))
    after = load(folder)
    assert after.get_buffer("lm_head.weight_scale").dtype == torch.float16
    assert ((after(TOKENS) - before).norm() / before.norm()) < 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"format": "marlin-24"},
            "is compressed-tensors marlin-24; nano3 reads int-quantized, pack-quanti",
        ),
        (
            {"weights": {"group_size": 128}},
            "weights have group_size 128; nano3 reads 4 bits, symmetric, with groups of 32",
        ),
        ({"weights": {"symmetric": False}}, "weights have symmetric False"),
        ({"weights": {"num_bits": 8}}, "weights have num_bits 8"),
    ],
)
@pytest.mark.parametrize("bits", [4], indirect=True)
def test_other_formats_of_the_same_method_are_refused(folder, changes, message):
    config = json.loads((folder / "config.json").read_text())
    section = config["quantization_config"]
    section["config_groups"]["group_0"]["weights"] |= changes.pop("weights", {})
    section |= changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        read_config(folder)


def test_what_cannot_be_quantized_is_named(small_config, plain):
    quantize_integers(plain, 8)
    with pytest.raises(UserError, match="is quantized already"):
        quantize_integers(plain, 4)
    sizes = replace(small_config, **(DIVIDED | {"d_expert": 50}))
    odd = LM(sizes).init_weights(0)
    with pytest.raises(UserError, match=r"experts.down_proj: rows of 50 numbers do not divide into groups of 32"):
        quantize_integers(odd, 4)
    odd = LM(sizes).init_weights(0)
    with torch.no_grad():
        odd.get_parameter("lm_head.weight")[3, 2] = torch.nan
    with pytest.raises(UserError, match="lm_head: holds a number that is not finite"):
        quantize_integers(odd, 8)
