"""Weights of a model with adapters reach every kind of engine."""

import copy

import pytest
import torch

from nano3.config.lora import LoraConfig
from nano3.engine.engine import Engine
from nano3.engine.protocol import run
from nano3.engine.request import Request, Sampling
from nano3.model.hf.folder import load, save
from nano3.model.hf.names import is_adapter
from nano3.model.lora.apply import adapted, apply_lora
from nano3.model.lora.merge import merge
from nano3.rl.sync import WeightSync, copy_weights


def engine_of(model, tokenizer, kind=Engine):
    return kind(model, tokenizer, memory=64 << 20, page_size=8, snapshot_every=32)


def train(model):
    """Change the adapters in place, as an optimizer step would."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


class FolderEngine(Engine):
    """An engine that has its own weights from a folder, as vLLM does."""

    def __init__(self, folder, tokenizer, **options):
        self.folder = folder
        super().__init__(load(folder), tokenizer, **options)

    def reload_weights(self):
        copy_weights(load(self.folder), self.model)
        return self.weights_changed()


def answers(engine):
    prompts = [tuple(range(3 + i, 20 + i)) for i in range(3)]
    sampling = Sampling(temperature=0, max_tokens=8)
    outputs = run(engine, [Request(f"{i}", prompt, sampling) for i, prompt in enumerate(prompts)])
    return [list(out[0].token_ids) for out in outputs]


@pytest.mark.parametrize("kind", ["same", "copy", "folder"])
def test_adapters_reach_the_engine(model, tokenizer, tmp_path, kind):
    plain = copy.deepcopy(model)
    if kind == "folder":
        save(model, tmp_path / "model", extra=tokenizer.save)
    apply_lora(model, LoraConfig(rank=4))
    if kind == "same":
        engine = engine_of(model, tokenizer)
        sync = WeightSync(model, engine)
    elif kind == "copy":
        engine = engine_of(plain, tokenizer)
        sync = WeightSync(model, engine)
    else:
        engine = engine_of(tmp_path / "model", tokenizer, FolderEngine)
        sync = WeightSync(model, engine, replaced_folder=tmp_path / "model")
    before = {name: p.clone() for name, p in model.named_parameters() if not is_adapter(name)}
    for _ in range(2):
        train(model)
        assert sync.sync().measured.generated.largest < 1e-4
        model.eval()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)
    reference = copy.deepcopy(model)
    merge(reference)
    assert answers(engine) == answers(engine_of(reference.eval(), tokenizer))
    assert bool(list(adapted(engine.model))) == (kind == "same")
