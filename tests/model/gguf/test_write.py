"""The file for llama.cpp, read back by the `gguf` package."""

import dataclasses
import re

import gguf
import numpy as np
import pytest
import torch

from nano3.config.errors import UserError
from nano3.config.presets import load_model
from nano3.model.gguf.write import write_gguf
from nano3.model.lm import LM

pytestmark = pytest.mark.any_isa

CFG = dataclasses.replace(load_model("tiny"), pattern="ME*", vocab_size=64)


@pytest.fixture(scope="module")
def model():
    return LM(CFG).init_weights(0)


def read(path):
    reader = gguf.GGUFReader(path)
    return reader, {tensor.name: tensor for tensor in reader.tensors}


@pytest.mark.parametrize(("kind", "dtype"), [("f32", torch.float32), ("bf16", torch.bfloat16)])
def test_every_parameter_is_in_the_file_once(model, tmp_path, kind, dtype):
    write_gguf(model, tmp_path / "m.gguf", kind)
    _, tensors = read(tmp_path / "m.gguf")
    assert sum(int(tensor.n_elements) for tensor in tensors.values()) == sum(
        t.numel() for t in (*model.parameters(), *model.buffers())
    )
    up = tensors["blk.1.ffn_up_exps.weight"]
    values = gguf.quants.dequantize(up.data, up.tensor_type).reshape(model.blocks[1].mixer.experts.up_proj.shape)
    expected = model.blocks[1].mixer.experts.up_proj.detach().to(dtype).float().numpy()
    np.testing.assert_array_equal(values, expected)
    assert tensors["blk.1.ffn_gate_inp.weight"].tensor_type == gguf.GGMLQuantizationType.F32


def test_decays_are_stored_as_llama_cpp_wants_them(model, tmp_path):
    write_gguf(model, tmp_path / "m.gguf", "bf16")
    _, tensors = read(tmp_path / "m.gguf")
    expected = -torch.exp(model.blocks[0].mixer.A_log.detach())
    torch.testing.assert_close(torch.from_numpy(tensors["blk.0.ssm_a"].data.copy()).flatten(), expected)
    assert list(tensors["blk.0.ssm_norm.weight"].shape) == [CFG.d_inner // CFG.n_groups, CFG.n_groups]


def test_blocks_are_told_apart_by_their_sizes(model, tmp_path):
    write_gguf(model, tmp_path / "m.gguf", "f32")
    reader, _ = read(tmp_path / "m.gguf")
    field = lambda name: reader.fields[f"nemotron_h_moe.{name}"].contents()  # noqa: E731
    assert field("attention.head_count_kv") == [0, 0, CFG.n_kv_heads]
    assert field("feed_forward_length") == [0, CFG.d_expert, 0]
    assert field("expert_weights_scale") == pytest.approx(CFG.routed_scale)


@pytest.mark.parametrize(
    ("pattern", "kv_heads", "widths"),
    [("MM*M", [0, 0, CFG.n_kv_heads, 0], [0] * 4), ("M-*", [0, 0, CFG.n_kv_heads], [0, 48, 0])],
)
def test_models_without_experts_are_of_the_dense_architecture(tmp_path, pattern, kv_heads, widths):
    model = LM(dataclasses.replace(CFG, pattern=pattern, d_ff=48)).init_weights(0)
    write_gguf(model, tmp_path / "m.gguf", "f32")
    reader, tensors = read(tmp_path / "m.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "nemotron_h"
    assert fields["nemotron_h.attention.head_count_kv"] == kv_heads
    assert fields["nemotron_h.feed_forward_length"] == widths
    assert not any("expert" in name for name in fields)
    known = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[gguf.MODEL_ARCH.NEMOTRON_H]}
    assert {re.sub(r"blk\.\d+(.*?)(\.weight|\.bias)?$", r"blk.{bid}\1", name) for name in tensors} - known == {
        "token_embd.weight", "output_norm.weight", "output.weight",
    }  # fmt: skip
    assert sum(int(tensor.n_elements) for tensor in tensors.values()) == sum(t.numel() for t in model.parameters())


@pytest.mark.parametrize(("pattern", "d_shared"), [("ME-", 32), ("ME", 0)])
def test_what_llama_cpp_cannot_run_is_said(tmp_path, pattern, d_shared):
    cfg = dataclasses.replace(CFG, pattern=pattern, d_ff=32, d_shared=d_shared)
    with pytest.raises(UserError, match=rf"llama\.cpp cannot run blocks {pattern}"):
        write_gguf(LM(cfg), tmp_path / "m.gguf", "f32")
    assert not (tmp_path / "m.gguf").exists()
