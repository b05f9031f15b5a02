from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch

from nano3.config.lora import LoraConfig
from nano3.config.presets import load_model
from nano3.config.schema import PretrainConfig
from nano3.model.count import memory
from nano3.model.lm import LM
from nano3.model.lora.apply import apply_lora
from nano3.model.lora.apply import projections as of_the_model
from nano3.model.lora.targets import adapter_parameters, projections

pytestmark = pytest.mark.any_isa


@pytest.mark.parametrize("targets", [[], ["q_proj", "lm_head"], ["*.experts.*"], ["blocks.0.*", "out_proj"]])
def test_sizes_are_those_of_the_model(small_config, targets):
    lora = LoraConfig(rank=3, targets=targets)
    with torch.device("meta"):
        model = LM(small_config)
    assert [p.name for p in projections(small_config)] == list(of_the_model(model))
    assert apply_lora(model, lora).trained == adapter_parameters(small_config, lora)


@dataclass(frozen=True)
class WithAdapters(PretrainConfig):
    lora: LoraConfig = field(default_factory=LoraConfig)


def test_adapters_of_the_reports_model_train_where_all_its_weights_do_not():
    cfg = WithAdapters(model=load_model("nano3-30b-a3b"))
    every = memory(cfg, "bfloat16").shared
    adapters = memory(replace(cfg, lora=LoraConfig(rank=16, base_dtype="bfloat16")), "bfloat16").shared
    assert every > 500e9
    assert 63e9 < adapters < 75e9
