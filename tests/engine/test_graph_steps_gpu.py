"""Decoding in CUDA graphs on a GPU: the texts of decoding op by op, and one wait for the device a token."""

from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from nano3.config.model import ModelConfig
from nano3.engine.engine import Engine
from nano3.engine.protocol import run
from nano3.engine.request import Request, Sampling
from nano3.model import step
from nano3.model.lm import LM
from nano3.model.state.plan import Plan, Span
from nano3.model.state.pool import StatePool
from tests.engine.conftest import SIZES
from tests.engine.test_graph_steps import assert_same_texts, requests

pytestmark = pytest.mark.gpu
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def model_of(tokenizer, pattern, dtype):
    cfg = ModelConfig(pattern=pattern, vocab_size=tokenizer.vocab_size + 5, init_std=0.3, **SIZES)
    return LM(cfg).init_weights(seed=1).to_dtype(dtype).eval().cuda()


@pytest.fixture(scope="module")
def on_gpu(tokenizer):
    """Without experts, whose float32 products on a GPU wait for it."""
    return model_of(tokenizer, "M*M-", torch.float32)


ASKED = [replace(request, return_experts=False) for request in requests(12)]


def without_experts(model, tokenizer):
    engine = Engine(model, tokenizer, memory=64 << 20, page_size=8, snapshot_every=32)
    return [output for group in run(engine, ASKED) for output in group]


def test_graphs_give_the_texts_of_decoding_op_by_op(on_gpu, tokenizer, monkeypatch):
    got = without_experts(on_gpu, tokenizer)
    assert step.explain(on_gpu)[0] == "graph"
    monkeypatch.setenv("NANO3_GRAPHS", "0")
    expected = without_experts(on_gpu, tokenizer)
    assert_same_texts(on_gpu, tokenizer, ASKED, got, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_model_on_another_gpu_than_the_current_one(tokenizer):
    model = model_of(tokenizer, "M*M-", torch.float32)
    expected = without_experts(model, tokenizer)
    got = without_experts(model.to("cuda:1"), tokenizer)
    assert step.explain(model)[0] == "graph"
    assert_same_texts(model, tokenizer, ASKED, got, expected)


def test_new_weights_are_seen(on_gpu, tokenizer):
    engine, texts = Engine(on_gpu, tokenizer, memory=64 << 20, page_size=8), []
    for factor in (-1, -1, 1):
        texts.append([output.ids for output in run(engine, requests(1))[0]])
        with torch.no_grad():
            on_gpu.lm_head.weight.mul_(factor)
        engine.weights_changed()
    assert texts[0] == texts[2] != texts[1]


@torch.inference_mode()
def test_steps_that_nobody_waits_for_have_numbers_of_their_own(on_gpu):
    """A GPU that is busy reads the slots and lengths of a step after the host has gone on to the next."""
    pool = StatePool(on_gpu.cfg, n_slots=3, n_pages=3, page_size=8, device="cuda")
    tokens = torch.tensor([[5]], device="cuda")

    def walk(cycles):
        for block in pool.blocks:
            for tensor in (t for t in vars(block).values() if isinstance(t, torch.Tensor)) if block else ():
                tensor.zero_()
        torch.cuda.synchronize()
        found = []
        for i in range(3):
            torch.cuda._sleep(cycles)
            found.append(on_gpu.hidden(tokens, state=pool.state(Plan([Span(1, i, 0, [i])], 8, "cuda"))).x)
        torch.cuda.synchronize()
        return torch.cat(found), [block.ssm.clone() for block in pool.blocks if hasattr(block, "ssm")]

    walk(0)  # makes the graphs
    hidden, states = walk(100_000_000)
    torch.testing.assert_close(hidden, hidden[:1].expand_as(hidden))
    for state in states:
        assert state[0].any()
        torch.testing.assert_close(state, state[:1].expand_as(state))


@pytest.mark.parametrize("kind", [{"temperature": 0}, {"seed": 1}, {"seed": 2, "top_p": 0.9}])
def test_the_host_waits_once_a_token(tokenizer, kind):
    """With the report's kinds of blocks, in bfloat16."""
    model = model_of(tokenizer, "M*ME", torch.bfloat16)
    engine = Engine(model, tokenizer, memory=64 << 20, page_size=64)
    for i in range(5):
        engine.add(Request(f"r{i}", tuple(range(7, 20 + i)), Sampling(max_tokens=40, ignore_eos=True, **kind)))
    for _ in range(8):  # the prompts, and the graphs made
        engine.step()
    assert step.explain(model)[0] == "graph", step.explain(model)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        for _ in range(10):
            assert len(engine.step()) == 5
    calls = {event.key: event.count for event in seen.key_averages()}
    assert calls.get("cudaGraphLaunch", 0) >= 10
    assert sum(calls.get(wait, 0) for wait in WAITS) <= 10 + 1  # the profiler's own at its end
