"""Requests of every kind share decoding steps, and each gets what it gets alone, in C++ as in PyTorch."""

import random

import pytest

from nano3.engine.engine import Engine
from nano3.engine.protocol import run
from nano3.engine.request import Grammar, Request, Sampling, ThinkingBudget
from tests.engine.ties import assert_same, assert_same_but_for_ties

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


def request_of(name):
    prompt = random.Random(name).choices(range(7, 300), k=5 + list(KINDS).index(name))
    return Request(name, tuple(prompt), KINDS[name])


def answers(model, tokenizer, names, **options):
    """The outputs of these kinds of requests in one engine, by kind."""
    engine = Engine(model, tokenizer, memory=64 << 20, page_size=8, **options)
    requests = [request_of(name) for name in KINDS if name in names]
    outputs = run(engine, requests)
    return {request.id: output for request, (output,) in zip(requests, outputs, strict=True)}


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
        assert_same_but_for_ties(model, tokenizer, request_of(name), got[name], expected[name])
