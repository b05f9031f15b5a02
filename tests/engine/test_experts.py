"""Experts that the engine reports are those that its tokens used; a training pass that replays them comes closer."""

import copy
import random

import numpy as np
import pytest
import torch

from nano3.config.model import ModelConfig
from nano3.engine.engine import Engine
from nano3.engine.protocol import run
from nano3.engine.request import Request, Sampling
from nano3.engine.sequence import ExpertLog
from nano3.model.lm import LM


def prompt(length, seed=0, vocab=300):
    rng = random.Random(seed)
    return tuple(rng.randrange(7, vocab) for _ in range(length))


def engine_of(model, tokenizer, **options):
    return Engine(model, tokenizer, **{"memory": 64 << 20, "page_size": 8, "snapshot_every": 32, **options})


def ask(name, ids, n=1, **sampling):
    return Request(name, ids, Sampling(**{"max_tokens": 20, "seed": 1, "ignore_eos": True, **sampling}), n, (), True)


@torch.no_grad()
def by_model(model, ids):
    """(MoE blocks, T, K) of a whole forward pass."""
    return model.hidden(torch.tensor([ids]), keep_expert_ids=True).expert_ids[:, 0].numpy()


def assert_reported(model, request, output):
    ids = [*request.prompt, *output.ids]
    assert output.experts.shape == (1, len(ids) - 1, 2)
    assert output.experts.dtype == np.uint8
    assert np.array_equal(np.sort(output.experts), np.sort(by_model(model, ids[:-1])))


WAYS = {
    "plain": {},
    "short steps": {"step_tokens": 5, "mixed_step_tokens": 3},
    "guesses": {"speculate": 3},
    "exact": {"exact": True},
    "preempted": {"memory": 160_000, "max_context": 128},
}


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_prompt_and_output_whatever_way_they_were_computed(model, tokenizer, options):
    engine = engine_of(model, tokenizer, **options)
    lengths = (1, 40, 70, 33)
    kinds = ({"temperature": 0}, {}, {"log_probs": 2}, {"top_p": 0.8})
    requests = [ask(str(i), prompt(n, i % 2), 1 + i % 2, **kinds[i]) for i, n in enumerate(lengths)]
    bystanders = [Request(f"b{i}", prompt(50, i), Sampling(max_tokens=30, seed=i)) for i in range(3)]
    for _ in range(2):
        outputs = run(engine, [*bystanders, *requests])
        assert all(output.experts is None for output in outputs[0])
        for request, mine in zip(requests, outputs[3:], strict=True):
            for output in mine:
                assert_reported(model, request, output)
    if "memory" in options:
        assert engine.stats().preemptions > 0


def test_a_kept_beginning_brings_its_experts(model, tokenizer):
    engine = engine_of(model, tokenizer)
    run(engine, [Request("without", prompt(100), Sampling(max_tokens=2))])
    first, second = ask("first", prompt(100)), ask("second", (*prompt(70), *prompt(9, 5)))
    [[output]] = run(engine, [first])
    assert output.cached_tokens == 0  # the states that are kept have no experts beside them
    assert_reported(model, first, output)
    [[shared]] = run(engine, [second])
    assert shared.cached_tokens == 64
    assert_reported(model, second, shared)
    following = ask("following", (*prompt(100), *output.ids, 9))
    [[turn]] = run(engine, [following])
    assert turn.cached_tokens > 100
    assert_reported(model, following, turn)


def test_they_come_with_the_updates_and_a_scored_prompt_has_them_too(model, tokenizer):
    engine = engine_of(model, tokenizer, step_tokens=30)
    engine.add(ask("r", prompt(70), max_tokens=3))
    updates = []
    while engine.has_work:
        updates += engine.step()
    assert [update.experts.shape[1] for update in updates] == [70, 1, 1]
    [[scored]] = run(engine, [ask("s", prompt(70), max_tokens=0, prompt_log_probs=0)])
    assert np.array_equal(scored.experts, updates[0].experts)


def test_a_model_without_experts_refuses(tokenizer):
    sizes = {"d_model": 32, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "d_ff": 32, "max_position_embeddings": 256}
    dense = LM(ModelConfig(pattern="*-", vocab_size=tokenizer.vocab_size, **sizes)).init_weights()
    with pytest.raises(ValueError, match="no mixture of experts"):
        engine_of(dense, tokenizer).add(ask("r", prompt(3)))


@pytest.mark.parametrize("backend", ["", "eager"])
def test_replay_in_a_training_pass_brings_bfloat16_rollouts_closer(model, tokenizer, monkeypatch, backend):
    """The trainer of float32 masters and the bfloat16 copy that rolls out."""
    monkeypatch.setenv("NANO3_BACKEND", backend)
    rollouts = engine_of(copy.deepcopy(model).to_dtype(torch.bfloat16), tokenizer)
    request = ask("r", prompt(40), 32, max_tokens=60)
    [outputs] = run(rollouts, [request])
    ids = torch.tensor([[*request.prompt, *output.ids] for output in outputs])
    routing = torch.stack([torch.from_numpy(output.experts) for output in outputs], dim=1)
    largest = []
    for given in (None, routing):
        with torch.no_grad():
            logits = model.lm_head(model.hidden(ids[:, :-1], routing=given).x).log_softmax(-1)
        trained = logits.gather(2, ids[:, 1:, None])[:, 39:, 0]
        sampled = torch.stack([torch.from_numpy(output.sampled_log_probs) for output in outputs])
        largest.append(float((trained - sampled).abs().max()))
    assert largest[1] < largest[0] / 3


def test_reporting_each_token_copies_no_earlier_ones(monkeypatch):
    log, copied, concatenate = ExpertLog(), [], np.concatenate
    monkeypatch.setattr(
        np, "concatenate", lambda x, axis=0: copied.append(sum(map(np.size, x))) or concatenate(x, axis)
    )
    tokens = np.arange(3 * 400 * 2, dtype=np.uint8).reshape(3, 400, 2)
    found = []
    for at in range(400):
        log.add(at, tokens[:, at : at + 1])
        found.append(log.take_new())
    assert np.array_equal(concatenate(found, 1), tokens)
    assert log.take_new().shape == (3, 0, 2)
    assert sum(copied) <= 2 * tokens.size


def test_kept_states_share_the_experts_of_their_tokens(model, tokenizer):
    """What all kept states of a prompt hold grows with its length, not with the square."""
    engine = engine_of(model, tokenizer)
    request = ask("r", prompt(1000), max_tokens=50)
    [[output]] = run(engine, [request])
    entries = list(engine.cache._entries.values())
    assert len(entries) > 20
    for entry in entries:
        assert np.array_equal(np.concatenate(entry.experts, axis=1), output.experts[:, : entry.length])
    held = {id(whole): whole.nbytes for entry in entries for part in entry.experts for whole in [owner(part)]}
    assert sum(held.values()) <= output.experts.nbytes


def owner(array):
    """The array whose memory a view keeps alive."""
    while array.base is not None:
        array = array.base
    return array


@pytest.mark.parametrize("lengths", [(7, 20, 20, 33), (33, 7, 20, 12)])
def test_kept_pieces_whatever_the_order_of_lengths(lengths):
    tokens = np.random.default_rng(0).integers(0, 9, (2, 40, 3), dtype=np.uint8)
    log, other = ExpertLog(), ExpertLog()
    for start in range(0, 40, 10):
        log.add(start, tokens[:, start : start + 10])
    for length in lengths:
        assert np.array_equal(np.concatenate(log.upto(length), axis=1), tokens[:, :length])
    other.start_with(log.upto(20))
    other.add(15, tokens[:, 15:])
    assert np.array_equal(other.take_new(), tokens)
    other.start_with(log.upto(33))
    assert other.take_new().shape[1] == 0
    assert np.array_equal(np.concatenate(other.upto(40), axis=1), tokens)
