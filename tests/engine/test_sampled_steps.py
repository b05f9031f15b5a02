"""Requests of every kind share decoding steps, and each gets what it gets alone, in C++ as in PyTorch."""

import random

import pytest

from nano3.engine.engine import Engine
from nano3.engine.protocol import run
from nano3.engine.request import Grammar, Request, Sampling, ThinkingBudget

MORE = {"max_tokens": 14, "ignore_eos": True}
KINDS = {
    "greedy": Sampling(temperature=0, **MORE),
    "plain": Sampling(seed=1, **MORE),
    "cold": Sampling(seed=2, temperature=0.5, min_p=0.02, **MORE),
    "top_p": Sampling(seed=3, top_p=0.8, **MORE),
    "top_k": Sampling(seed=4, top_k=20, top_p=0.9, temperature=1.3, **MORE),
    "alternatives": Sampling(seed=5, log_probs=3, **MORE),
    "penalty": Sampling(seed=6, presence_penalty=1.0, **MORE),
    "bias": Sampling(seed=7, logit_bias={40: 3.0}, top_p=0.9, **MORE),
    "grammar": Sampling(seed=8, grammar=Grammar("regex", "[a-z ]{30,40}"), **MORE),
    "budget": Sampling(seed=9, thinking=ThinkingBudget(3, grace=2), top_p=0.9, **MORE),
    "min_tokens": Sampling(seed=10, min_tokens=5, max_tokens=14),
}


def answers(model, tokenizer, names, **options):
    """The outputs of these kinds of requests in one engine, by kind."""
    engine = Engine(model, tokenizer, memory=64 << 20, page_size=8, **options)
    requests = [
        Request(name, tuple(random.Random(name).choices(range(7, 300), k=5 + i)), KINDS[name])
        for i, name in enumerate(KINDS)
        if name in names
    ]
    outputs = run(engine, requests)
    return {request.id: output for request, (output,) in zip(requests, outputs, strict=True)}


def assert_same(got, expected):
    assert got.ids == expected.ids
    for one, other in zip(got.tokens, expected.tokens, strict=True):
        assert one.log_prob == pytest.approx(other.log_prob, abs=1e-4)
        assert one.sampled_log_prob == pytest.approx(other.sampled_log_prob, abs=1e-4)
        assert [i for i, _ in one.top] == [i for i, _ in other.top]
        assert one.forced == other.forced


def test_all_kinds_together(model, tokenizer):
    together = answers(model, tokenizer, KINDS)
    assert any(token.forced for token in together["budget"].tokens)
    assert all(len(token.top) == 3 for token in together["alternatives"].tokens)
    for name in KINDS:
        assert_same(together[name], answers(model, tokenizer, [name])[name])


@pytest.mark.parametrize("options", [{}, {"speculate": 3}])
def test_pytorch_gives_the_same(model, tokenizer, monkeypatch, options):
    got = answers(model, tokenizer, KINDS, **options)
    monkeypatch.setenv("NANO3_BACKEND", "eager")
    expected = answers(model, tokenizer, KINDS, **options)
    for name in KINDS:
        assert_same(got[name], expected[name])
