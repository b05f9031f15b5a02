"""Weights in the compute type: the same gradients, and one copy a step however often a weight is used."""

import collections

import pytest
import torch
from nano3.kernels.narrow import _KEPT, is_kept, kept, narrowed
from torch.utils._python_dispatch import TorchDispatchMode

from nano3 import kernels
from nano3.config.lora import LoraConfig
from nano3.model.lora.apply import apply_lora
from nano3.parallel.precision import narrow_parameters
from nano3.train.feed import to_device
from nano3.train.loss import Scale
from nano3.train.step import Recipe, _accumulate
from nano3.train.world import World
from tests.train.test_host_copies import LOSSES, META, batch_of, micro_batch, model_on


class Casts(TorchDispatchMode):
    """Counts how often each of some float32 weights becomes another type."""

    def __init__(self, weights):
        self.names = {weight.untyped_storage()._cdata: name for name, weight in weights.items()}
        self.count = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and args[0].dtype == torch.float32:
            name = self.names.get(args[0].untyped_storage()._cdata)
            if name is not None and (kwargs or {}).get("dtype") == torch.bfloat16:
                self.count[name] += 1
        return func(*args, **(kwargs or {}))


def weights_of(model):
    narrow = {id(p) for p in narrow_parameters(model)}
    return {name: p for name, p in model.named_parameters() if id(p) in narrow}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("rl", {}), ("pretrain", {"checkpoint_activations": True}), ("pretrain", {"sequence_chunk": 24})],
    ids=str,
)
def test_a_step_casts_each_weight_once(kind, settings):
    """Of two micro-batches, each block perhaps computed twice, or in pieces."""
    model = model_on(META, **settings)
    weights = weights_of(model)
    world = World(device=META)
    recipe = Recipe(model, None, LOSSES[kind](), world, 0, 0, None)
    with Casts(weights) as casts:
        _accumulate(recipe, [batch_of(kind, 40)] * 2, Scale(100, 2))
    assert dict(casts.count) == dict.fromkeys(weights, 1)
    assert not _KEPT
    with Casts(weights) as casts:
        micro_batch(model, kind, to_device(batch_of(kind, 40), META))
    assert min(casts.count.values()) >= 1
    assert sum(casts.count.values()) > len(weights)


def test_frozen_experts_with_adapters_are_cast_once_too():
    model = model_on(META, checkpoint_activations=True)
    apply_lora(model, LoraConfig(rank=8, targets=["*.experts.*"]))
    frozen = {name: p for name, p in weights_of(model).items() if name.endswith(("up_proj", "down_proj"))}
    assert frozen
    recipe = Recipe(model, None, LOSSES["pretrain"](), World(device=META), 0, 0, None)
    with Casts(frozen) as casts:
        _accumulate(recipe, [batch_of("pretrain", 40)] * 2, Scale(100, 2))
    assert dict(casts.count) == dict.fromkeys(frozen, 1)
    assert all((p.grad is None) != ("lora_" in name) for name, p in model.named_parameters() if ".experts." in name)


@pytest.mark.parametrize("kind", LOSSES)
def test_gradients_are_the_same_bits(kind, monkeypatch):
    monkeypatch.setenv("NANO3_BACKEND", "eager")
    found = []
    for keep in (False, True):
        model = model_on("cpu", checkpoint_activations=True).init_weights(0)
        with kept(narrow_parameters(model) if keep else []):
            assert is_kept(model.lm_head.weight) == keep
            for _ in range(2):
                micro_batch(model, kind, batch_of(kind, 40))
        found.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name


def test_the_first_rows_of_a_weight_come_from_its_copy():
    weight = torch.nn.Parameter(torch.randn(6, 4))
    with kept([weight]):
        whole = narrowed(weight, torch.bfloat16)
        assert narrowed(weight[:3], torch.bfloat16).data_ptr() == whole.data_ptr()
        for view in (weight[:3], weight[:, :2], weight[2:], weight.t()):
            assert torch.equal(narrowed(view, torch.bfloat16), view.detach().bfloat16())
        assert narrowed(weight, torch.float32).data_ptr() == weight.data_ptr()
    with torch.no_grad():
        weight.zero_()
    assert not narrowed(weight, torch.bfloat16).any()


def test_copies_go_where_the_work_fails():
    weight = torch.nn.Parameter(torch.randn(2, 2))
    with pytest.raises(RuntimeError), kept([weight]):
        kernels.linear(torch.ones(1, 3, dtype=torch.bfloat16), weight, backend="eager")
    assert not is_kept(weight)
