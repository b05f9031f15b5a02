"""The folder of an adapter to an engine."""

import dataclasses

import pytest
import torch
from nano3.kernels import Scaled

import nano3
from nano3.config.errors import UserError
from nano3.config.lora import LoraConfig
from nano3.engine.launch import open_engine, small_tokenizer
from nano3.engine.protocol import run
from nano3.engine.request import Request, Sampling
from nano3.engine.vllm.engine import VllmEngine
from nano3.model.hf.folder import load, save
from nano3.model.lm import LM
from nano3.model.lora.apply import apply_lora, has_adapters
from nano3.model.lora.folder import save_adapter
from nano3.model.lora.merge import merge

pytestmark = pytest.mark.any_isa


def greedy(engine):
    (outputs,) = run(engine, [Request("a", (9, 8, 7, 6), Sampling(temperature=0, max_tokens=8))])
    return list(outputs[0].ids)


def adapter_on(model, tokenizer, folder):
    save(model, folder / "base", extra=tokenizer.save)
    model = load(folder / "base")
    apply_lora(model, LoraConfig(rank=3, targets=["in_proj", "q_proj", "experts.up_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    save_adapter(model, folder / "adapter", str(folder / "base"))
    return folder / "adapter"


def scaled(weight):
    scale = weight.detach().abs().max() / 448
    return Scaled((weight.detach() / scale).to(torch.float8_e4m3fn), scale)


@pytest.fixture
def tokenizer():
    return small_tokenizer(300)


@pytest.fixture
def model(small_config, tokenizer):
    return LM(dataclasses.replace(small_config, vocab_size=tokenizer.vocab_size)).init_weights(1).eval()


def test_an_adapter_is_merged_in_memory_and_that_is_said(model, tokenizer, tmp_path, capsys):
    adapter = adapter_on(model, tokenizer, tmp_path)
    engine, name = open_engine(str(adapter), memory=16 << 20, dtype="float32")
    assert name == "adapter"
    assert "merged into the weights in memory" in capsys.readouterr().err
    assert not has_adapters(engine.model)
    unmerged = nano3.load(adapter)
    assert has_adapters(unmerged)
    found = greedy(engine)
    assert found == greedy(nano3.Engine(unmerged, tokenizer, memory=16 << 20))
    assert found != greedy(open_engine(str(tmp_path / "base"), memory=16 << 20, dtype="float32")[0])


def test_an_adapter_of_a_quantized_base_is_computed_beside_it(model, tokenizer, tmp_path, capsys):
    projection, experts = model.blocks[0].mixer.in_proj, model.blocks[1].mixer.experts
    projection.use_scaled(scaled(projection.weight))
    experts.use_scaled("up_proj", scaled(experts.up_proj))
    adapter = adapter_on(model, tokenizer, tmp_path)
    engine, _ = open_engine(str(adapter), memory=16 << 20, dtype="float32")
    assert "its base is quantized" in capsys.readouterr().err
    assert has_adapters(engine.model)
    assert greedy(engine) != greedy(open_engine(str(tmp_path / "base"), memory=16 << 20, dtype="float32")[0])
    with pytest.raises(UserError, match="is quantized, and its numbers cannot hold an adapter"):
        merge(nano3.load(adapter))


def test_vllm_is_given_no_adapter(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("nano3.engine.vllm.engine._import_vllm", lambda: None)
    with pytest.raises(UserError, match="is a LoRA adapter; merge it first"):
        VllmEngine(str(adapter_on(model, tokenizer, tmp_path)))
