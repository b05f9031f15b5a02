"""The file for llama.cpp, read back by the `gguf` package."""

import dataclasses

import gguf
import numpy as np
import pytest
import torch

from nano3.bench.gguf_file import write_gguf
from nano3.config.errors import UserError
from nano3.config.presets import load_model
from nano3.model.lm import LM

CFG = dataclasses.replace(load_model("tiny"), pattern="ME*", vocab_size=64)


@pytest.fixture(scope="module")
def model():
    return LM(CFG).init_weights(0)


def read(path):
    reader = gguf.GGUFReader(path)
    return reader, {tensor.name: tensor for tensor in reader.tensors}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_parameter_is_in_the_file_once(model, tmp_path, dtype):
    write_gguf(model, tmp_path / "m.gguf", dtype)
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
    write_gguf(model, tmp_path / "m.gguf", torch.bfloat16)
    _, tensors = read(tmp_path / "m.gguf")
    expected = -torch.exp(model.blocks[0].mixer.A_log.detach())
    torch.testing.assert_close(torch.from_numpy(tensors["blk.0.ssm_a"].data.copy()).flatten(), expected)
    assert list(tensors["blk.0.ssm_norm.weight"].shape) == [CFG.d_inner // CFG.n_groups, CFG.n_groups]


def test_blocks_are_told_apart_by_their_sizes(model, tmp_path):
    write_gguf(model, tmp_path / "m.gguf", torch.float32)
    reader, _ = read(tmp_path / "m.gguf")
    field = lambda name: reader.fields[f"nemotron_h_moe.{name}"].contents()  # noqa: E731
    assert field("attention.head_count_kv") == [0, 0, CFG.n_kv_heads]
    assert field("feed_forward_length") == [0, CFG.d_expert, 0]
    assert field("expert_weights_scale") == pytest.approx(CFG.routed_scale)


def test_what_llama_cpp_cannot_run_is_said(tmp_path):
    cfg = dataclasses.replace(CFG, pattern="M-", d_ff=32)
    with pytest.raises(UserError, match=r"llama\.cpp: it cannot run blocks M-"):
        write_gguf(LM(cfg), tmp_path / "m.gguf", torch.float32)
    assert not (tmp_path / "m.gguf").exists()
