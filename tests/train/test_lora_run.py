"""Adapters through the trainer: checkpoints, resume, two sharded ranks, and the folders that a run leaves."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import nano3
from nano3.config.lora import LoraConfig
from nano3.model.hf.folder import save
from nano3.model.hf.names import is_adapter
from nano3.model.lm import LM
from nano3.train.checkpoint.snapshot import named_trained

SCRIPT = Path(__file__).with_name("lora_run.py")
LORA = {"rank": 2, "alpha": 8.0, "dropout": 0.0}


@pytest.fixture(scope="module")
def lora_run():
    spec = importlib.util.spec_from_file_location("lora_run", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["lora_run"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def base(tiny, tmp_path):
    save(LM(tiny.MODEL).init_weights(0), tmp_path / "base")
    return tmp_path / "base"


def stored(run_dir):
    return load_file(run_dir / "adapter" / "adapter_model.safetensors")


def test_a_run_trains_adapters_alone_and_leaves_them_and_the_merged_model(lora_run, tiny, base, tmp_path):
    trainer = lora_run.run(tmp_path / "run", base, LoraConfig(**LORA))
    start = LM(tiny.MODEL).init_weights(0).state_dict()
    state = trainer.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in start.items())
    assert {name for name, _ in named_trained(trainer.model, trainer.optimizer)} == set(filter(is_adapter, state))
    assert all(value.abs().max() > 0 for name, value in state.items() if name.endswith("lora_B"))
    tokens = torch.arange(3, 19).unsqueeze(0)
    merged, unmerged = (nano3.load(tmp_path / "run" / name)(tokens) for name in ("model", "adapter"))
    torch.testing.assert_close(merged, unmerged, rtol=1e-4, atol=1e-4)
    assert (nano3.load(base)(tokens) - merged).abs().max() > 1e-3


@pytest.mark.parametrize("way", [{}, {"checkpoint_activations": "block"}], ids=["plain", "recomputed"])
def test_a_resumed_run_equals_one_that_was_not_interrupted(lora_run, base, tmp_path, way):
    lora = LoraConfig(**LORA | {"dropout": 0.2})
    horizon = {"schedule": {"horizon_tokens": 384}, "train": way}
    lora_run.run(tmp_path / "whole", base, lora, **horizon)
    lora_run.run(tmp_path / "cut", base, lora, **horizon | {"train": {"tokens": 192, **way}})
    lora_run.run(tmp_path / "cut", base, lora, resume=True, **horizon)
    whole, cut = stored(tmp_path / "whole"), stored(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize(("base_dtype", "fsdp"), [("float32", True), ("bfloat16", True), ("float32", False)])
def test_two_ranks_train_the_same_adapters(lora_run, base, tmp_path, processes, base_dtype, fsdp):
    lora = LORA | {"base_dtype": base_dtype}
    lora_run.run(tmp_path / "one", base, LoraConfig(**lora))
    settings = json.dumps({"parallel": {"fsdp": fsdp}})
    arguments = (str(SCRIPT), str(tmp_path / "two"), str(base), "--lora", json.dumps(lora), "--settings", settings)
    outputs = [p.communicate(timeout=200) for p in processes(*arguments, ranks=2)]
    assert (tmp_path / "two" / "model" / "config.json").is_file(), outputs
    one, two = stored(tmp_path / "one"), stored(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=2e-3, atol=2e-4)
    for name, value in load_file(tmp_path / "one" / "model" / "model.safetensors").items():
        close = {"rtol": 2e-2, "atol": 2e-3} if base_dtype == "bfloat16" else {"rtol": 2e-3, "atol": 2e-4}
        torch.testing.assert_close(load_file(tmp_path / "two" / "model" / "model.safetensors")[name], value, **close)
