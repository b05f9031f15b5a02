"""Weights excluded from training by the patterns of train.freeze."""

import pytest
import torch
from nano3.kernels import Scaled

from nano3.config.errors import UserError
from nano3.model.lm import LM
from nano3.train.checkpoint.checkpointer import CheckpointError, load_tensors
from nano3.train.checkpoint.snapshot import named_trained
from nano3.train.freeze import frozen_names
from nano3.train.tracking.progress import Silent
from nano3.train.trainer import Trainer
from nano3.train.world import World

ROUTERS = ["blocks.1.mixer.gate.weight", "blocks.4.mixer.gate.weight"]
FREEZE = ["*.gate.weight", "embeddings.*", "blocks.0.*"]
BLOCK = {"checkpoint_activations": "block"}
WAYS = [
    pytest.param({}, id="plain"),
    pytest.param(BLOCK, id="recomputed"),
    pytest.param({**BLOCK, "sequence_chunk": 8}, id="pieces"),
]


def _settings(tiny, **train):
    return tiny.config(train={"freeze": FREEZE, **train})


def _check_frozen(tiny, state):
    """Frozen weights are bit for bit those of the start, the others are not; expert biases have moved."""
    start = LM(tiny.MODEL).init_weights(0)
    frozen = set(frozen_names(start, FREEZE))
    assert {name for name in frozen if not torch.equal(state[name], start.state_dict()[name])} == set()
    trained = {name for name, _ in start.named_parameters()} - frozen
    assert {name for name in trained if torch.equal(state[name], start.state_dict()[name])} == set()
    biases = [value for name, value in state.items() if name.endswith("e_score_correction_bias")]
    assert len(biases) == 2
    assert all(bias.abs().max() > 0 for bias in biases)


@pytest.mark.parametrize("way", WAYS)
def test_frozen_weights_stay_and_biases_move(tiny, tmp_path, way):
    run = tiny.trainer(tmp_path, _settings(tiny, **way))
    assert run.fit().step == 6
    _check_frozen(tiny, run.model.state_dict())
    trained = {name for name, _ in named_trained(run.model, run.optimizer)}
    assert trained.isdisjoint(frozen_names(run.model, FREEZE))
    assert len(run.optimizer.state) == len(trained)


@pytest.mark.parametrize("way", [WAYS[0], pytest.param({**BLOCK, "sequence_chunk": 8}, marks=pytest.mark.slow)])
def test_two_sharded_ranks_freeze_the_same_and_train_the_rest_alike(tiny, complete, tmp_path, way):
    alone = tiny.trainer(tmp_path / "one", _settings(tiny, **way))
    alone.fit()
    complete(tmp_path / "two", ranks=2, settings={"train": {"freeze": FREEZE, **way}})
    state = alone.model.state_dict()
    shapes = {f"model.{name}": torch.zeros_like(value) for name, value in state.items()}
    loaded = load_tensors(tmp_path / "two" / "checkpoints" / "step-6", shapes, World())
    there = {name: loaded[f"model.{name}"] for name in state}
    _check_frozen(tiny, there)
    for name, value in state.items():
        torch.testing.assert_close(there[name], value, atol=1e-4, rtol=1e-4)


def test_a_resume_goes_on_frozen_and_other_patterns_are_refused(tiny, tmp_path):
    tiny.trainer(tmp_path, tiny.config(train={"freeze": FREEZE, "tokens": 192}, schedule={"horizon_tokens": 384})).fit()
    changed = tiny.trainer(tmp_path, tiny.config(train={"freeze": FREEZE[:2]}, schedule={"horizon_tokens": 384}))
    with pytest.raises(CheckpointError, match=r"train\.freeze: .* -> "):
        changed.resume()
    run = tiny.trainer(tmp_path, tiny.config(train={"freeze": FREEZE}, schedule={"horizon_tokens": 384}))
    assert run.resume().name == "step-3"
    run.fit()
    _check_frozen(tiny, run.model.state_dict())


@pytest.mark.parametrize(
    "pattern", ["*.gate.weight", "blocks.*.mixer.gate.weight", "backbone.layers.*.gate.weight", "*[.]gate.*ght"]
)
def test_patterns_match_nanos_names_and_the_published_ones(tiny, pattern):
    assert frozen_names(LM(tiny.MODEL), [pattern]) == ROUTERS


def test_experts_of_a_block_are_one_tensor(tiny):
    model = LM(tiny.MODEL)
    found = frozen_names(model, ["backbone.layers.1.mixer.experts.*.up_proj.weight"])
    assert found == ["blocks.1.mixer.experts.up_proj"]
    with pytest.raises(UserError, match=r"1 of the 4 experts of blocks\.1\.mixer\.experts\.up_proj.*all of them"):
        frozen_names(model, ["backbone.layers.1.mixer.experts.2.up_proj.weight"])


@pytest.mark.parametrize(
    ("pattern", "near"),
    [("*.gate.weigth", "gate.weight"), ("*.router.weight", "gate.weight"), ("embedding.weight", "embeddings.weight")],
)
def test_a_pattern_that_matches_nothing_is_told_with_the_nearest_names(tiny, pattern, near):
    with pytest.raises(UserError) as error:
        frozen_names(LM(tiny.MODEL), [pattern])
    assert f"no weight matches {pattern!r}" in str(error.value)
    assert near in str(error.value)
    assert "\n" not in str(error.value)


def test_what_the_caller_froze_stays_frozen_and_quantized_weights_train_beside(tiny, tmp_path):
    cfg = tiny.config(train={"freeze": ["embeddings.*"]})
    model = LM(cfg.model).init_weights(0)
    model.lm_head.weight.requires_grad_(False)
    linear = model.blocks[0].mixer.in_proj
    scale = linear.weight.detach().abs().max() / 448
    linear.use_scaled(Scaled((linear.weight.detach() / scale).to(torch.float8_e4m3fn), scale, None))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Trainer(cfg, model, tiny.text(cfg), tmp_path, progress=Silent()).fit()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"embeddings.weight", "lm_head.weight", "blocks.0.mixer.in_proj.weight"}
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name, _ in model.named_parameters()} - frozen


def test_a_model_with_nothing_to_train_is_refused(tiny, tmp_path):
    with pytest.raises(UserError, match="matches every weight that can be trained"):
        tiny.trainer(tmp_path, tiny.config(train={"freeze": ["*"]}))
