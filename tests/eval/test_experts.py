"""Counts of expert use: every token once, whatever the batches; prompts do not see each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nano3.config.errors import UserError
from nano3.config.model import ModelConfig
from nano3.data.texts.corpus import is_heldout
from nano3.engine.launch import small_tokenizer
from nano3.eval.experts import (
    QUESTIONS,
    Use,
    count_group,
    default_prompts,
    encode_prompts,
    group_prompts,
    mixture_blocks,
)
from nano3.eval.experts_chart import draw
from nano3.model.lm import LM

LENGTHS = (3, 50, 1, 17, 64, 9)


@pytest.fixture
def prompts(small_config):
    random = torch.Generator().manual_seed(4)
    return [tuple(torch.randint(0, small_config.vocab_size, (n,), generator=random).tolist()) for n in LENGTHS]


def count_all(model, prompts, row_tokens):
    return sum(count_group(model, group, row_tokens) for group in group_prompts(prompts, row_tokens))


def one_by_one(model, prompts):
    """The router's decisions on each prompt alone, read where the router makes them."""
    loads = torch.zeros(2, model.cfg.n_experts, dtype=torch.int64)
    gates = [block.mixer.gate for block, symbol in zip(model.blocks, model.cfg.pattern, strict=True) if symbol == "E"]
    for layer, gate in enumerate(gates):

        def count(_, __, routing, layer=layer):
            loads[layer] += torch.bincount(routing.expert_ids.flatten(), minlength=model.cfg.n_experts)

        gate.register_forward_hook(count)
    with torch.no_grad():
        for ids in prompts:
            model(torch.tensor([ids]))
    return loads


@pytest.mark.parametrize("row_tokens", [1000, 64, 20, 7])
def test_counts_are_those_of_each_prompt_alone(small_model, prompts, row_tokens):
    counted = count_all(small_model, prompts, row_tokens)
    assert torch.equal(counted, one_by_one(small_model, prompts))
    assert counted.sum(1).tolist() == [sum(LENGTHS) * small_model.cfg.top_k] * 2


def test_groups_keep_order_and_size(prompts):
    groups = list(group_prompts(prompts, 60))
    assert [ids for group in groups for ids in group.ids] == prompts
    assert [group.index for group in groups] == list(range(len(groups)))
    assert [group.first for group in groups] == [0, 3, 4, 5]
    assert all(group.n_tokens <= 60 or len(group.ids) == 1 for group in groups)


def test_shares_of_a_known_use():
    use = Use(np.array([[10, 30, 0, 60], [25, 25, 25, 25]]), [1, 4], 50)
    assert use.shares[0].tolist() == [10, 30, 0, 60]
    assert use.even == 25
    assert use.variation[1] == 0
    assert use.variation[0] == pytest.approx(np.std([10, 30, 0, 60]) / 25)
    assert use.above(25) == [(1, 3, 60.0), (1, 1, 30.0)]
    assert use.above(60) == []
    assert use.unused() == 1
    assert [row["expert"] for row in use.table()] == [3, 0]


def test_a_model_without_experts_is_refused(small_config):
    with pytest.raises(UserError, match="no experts"):
        mixture_blocks(LM(ModelConfig(**{**vars(small_config), "pattern": "M*-"})))


def test_default_prompts_are_heldout_texts_and_questions():
    from nano3.config.schema import DataConfig
    from nano3.data.texts.skipped import Skipped
    from nano3.data.texts.stdlib_corpus import StandardLibrary
    from nano3.data.tokens.build import content_hash

    tokenizer = small_tokenizer(4096)
    found = default_prompts(tokenizer)
    assert found.ids == default_prompts(tokenizer).ids
    texts = [tokenizer.decode(ids[1:]) for ids in found.ids[: -len(QUESTIONS)]]
    assert len(texts) > 20
    documents = [d.text for d in StandardLibrary().documents(Skipped()) if d is not None]
    held = DataConfig()
    for text in texts[:3]:
        (whole, *_) = [document for document in documents if document.startswith(text)]
        assert is_heldout(np.array([content_hash(whole)], np.uint64), held.heldout_fraction, held.seed)[0]
    assert all(QUESTIONS[i] in tokenizer.decode(found.ids[i - len(QUESTIONS)]) for i in range(len(QUESTIONS)))


def test_prompts_of_every_form():
    tokenizer = small_tokenizer(4096)
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    text, ids, turn = encode_prompts(tokenizer, [{"prompt": "hi"}, {"prompt": (5, 6)}, chat])
    assert text == (tokenizer.eos_id, *tokenizer.encode("hi"))
    assert ids == (5, 6)
    assert tokenizer.token_id("<|im_start|>") in turn


@pytest.mark.parametrize("shape", [(1, 8), (3, 128)])
def test_a_chart_is_drawn(tmp_path, shape):
    loads = np.random.default_rng(0).integers(0, 100, shape)
    draw(Use(loads, list(range(shape[0])), 10), tmp_path / "experts.png", "a title", 5)
    assert (tmp_path / "experts.png").read_bytes().startswith(b"\x89PNG")
