"""Decoding in the step of CUDA graphs gives the texts of decoding op by op, whatever joins, leaves or changes."""

import copy
import random
import warnings
import weakref
from contextlib import contextmanager
from threading import Thread

import pytest
import torch
from nano3.kernels import dispatch
from nano3.kernels.eager import FUNCTIONS, grouped, mamba, paged

from nano3.config.errors import UserError
from nano3.engine.engine import Engine
from nano3.engine.protocol import run
from nano3.engine.request import Request, Sampling
from nano3.model import mamba2, step
from nano3.model.decode import graphed
from nano3.model.decode.graph import Recorder
from nano3.model.mamba2 import Mamba2
from nano3.model.router import Router
from nano3.model.state.hybrid import HybridState
from nano3.model.state.pool import StatePool
from tests.engine.test_sampled_steps import KINDS, answers, request_of
from tests.engine.ties import assert_same_but_for_ties
from tests.model.recorded import Recording

OPTIONS = {
    "plain": {},
    "guesses": {"speculate": 3},
    "exact": {"exact": True},
    "preempted": {"memory": 130_000, "max_context": 96},
    "short steps": {"step_tokens": 5, "mixed_step_tokens": 3},
}


def prompt(length, seed):
    return tuple(random.Random(seed).choices(range(7, 300), k=length))


def requests(count):
    """Of different lengths, so that sequences join and leave; some begin alike, some want their experts."""
    samplings = [
        {"temperature": 0},
        {"top_p": 0.9},
        {"top_k": 12, "temperature": 1.4},
        {"min_p": 0.05},
        {"log_probs": 2},
    ]
    return [
        Request(
            f"r{i}",
            prompt(40, seed=i % 2) + prompt(3 * i, seed=i) if i % 3 else prompt(5 + i, seed=i),
            Sampling(seed=i, max_tokens=4 + 5 * (i % 6), ignore_eos=True, **samplings[i % 5]),
            n=1 + i % 2,
            return_experts=i % 4 == 1,
        )
        for i in range(count)
    ]


def outputs(model, tokenizer, count, **options):
    engine = Engine(model, tokenizer, **{"memory": 64 << 20, "page_size": 8, "snapshot_every": 32, **options})
    found = run(engine, requests(count))
    return engine, [output for group in found for output in group]


def assert_same_texts(model, tokenizer, asked, got, expected):
    """Of all outputs of the requests, in order: tokens and experts, until rounding decides a token."""
    owners = [request for request in asked for _ in range(request.n)]
    for request, one, two in zip(owners, got, expected, strict=True):
        count = assert_same_but_for_ties(model, tokenizer, request, one, two)
        assert (one.experts is None) == (two.experts is None)
        if one.experts is not None:
            known = len(request.prompt) + count - 1
            assert (one.experts[:, :known] == two.experts[:, :known]).all()


@pytest.fixture
def ways(monkeypatch):
    """Calls of a function in the step of graphs and op by op."""

    def both(function, *arguments, **options):
        results = []
        for graphs in "10":
            with monkeypatch.context() as patched:
                patched.setenv("NANO3_GRAPHS", graphs)
                if graphs == "0":
                    patched.setenv("NANO3_BACKEND", "eager")
                results.append(function(*arguments, **options))
        return results

    return both


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_sequences_that_join_and_leave(model, tokenizer, ways, options):
    (engine, got), (other, expected) = ways(outputs, model, tokenizer, 12, **options)
    assert_same_texts(model, tokenizer, requests(12), got, expected)
    assert engine.stats().cache_hits == other.stats().cache_hits
    assert (engine.stats().preemptions > 0) == ("memory" in options)


@pytest.mark.parametrize("options", [{}, {"speculate": 3}])
def test_requests_of_all_kinds(model, tokenizer, ways, options):
    got, expected = ways(answers, model, tokenizer, KINDS, **options)
    for name in KINDS:
        assert_same_but_for_ties(model, tokenizer, request_of(name), got[name], expected[name])


def test_more_sequences_than_the_program_takes(model, tokenizer, ways):
    (_, got), (_, expected) = ways(outputs, model, tokenizer, 60, max_sequences=80)
    assert_same_texts(model, tokenizer, requests(60), got, expected)


def test_new_weights_between_requests(model, tokenizer, ways):
    def before_and_after():
        engine = Engine(model, tokenizer, memory=64 << 20, page_size=8)
        first = run(engine, requests(6))
        with torch.no_grad():
            model.lm_head.weight.mul_(-1)
        engine.weights_changed()
        second = run(engine, requests(6))
        with torch.no_grad():
            model.lm_head.weight.mul_(-1)
        return [output for group in (*first, *second) for output in group]

    got, expected = ways(before_and_after)
    half = len(got) // 2
    assert_same_texts(model, tokenizer, requests(6), got[:half], expected[:half])
    negated = copy.deepcopy(model)
    with torch.no_grad():
        negated.lm_head.weight.mul_(-1)
    assert_same_texts(negated, tokenizer, requests(6), got[half:], expected[half:])
    assert got[0].ids != got[half].ids


def test_engines_that_take_turns_and_close(model, tokenizer, ways):
    def turns():
        engines = [Engine(model, tokenizer, memory=8 << 20, page_size=page) for page in (4, 8, 16)]
        found = [run(engine, requests(4)) for engine in (*engines, engines[0])]
        engines[0].close()
        return [output for groups in (*found, run(engines[1], requests(4))) for group in groups for output in group]

    got, expected = ways(turns)
    assert_same_texts(model, tokenizer, 5 * requests(4), got, expected)


def test_a_closed_engine_leaves_no_memory_of_graphs(model, tokenizer, monkeypatch):
    monkeypatch.setenv("NANO3_GRAPHS", "1")
    step.release(model)  # what other tests left
    engine, _ = outputs(model, tokenizer, 1)
    (held,) = (weakref.ref(o.logits) for pool in step._GRAPHS[model]._pools.values() for o in pool._outputs.values())
    assert held() is not None
    engine.close()
    assert held() is None


def test_a_value_that_means_nothing_is_told_before_anything_is_generated(model, tokenizer, monkeypatch):
    monkeypatch.setenv("NANO3_GRAPHS", "2")
    with pytest.raises(UserError, match="NANO3_GRAPHS is '2'; it is 0 for no CUDA graphs"):
        Engine(model, tokenizer)


def test_the_reason_is_told_where_there_is_no_such_step(model, tokenizer, monkeypatch):
    monkeypatch.setenv("NANO3_GRAPHS", "1")
    assert step.explain(model)[0] == "graph"
    handle = model.blocks[0].register_forward_hook(lambda *_: None)
    try:
        assert step.explain(model) == ("op by op", "a Block of the model is hooked")
        assert outputs(model, tokenizer, 2)[1][0].tokens
    finally:
        handle.remove()


@pytest.fixture
def recordings(monkeypatch):
    """Steps are recorded and replayed, with the operations that a GPU would run: the eager ones' on other devices."""
    made = []

    def record(_, work):
        made.append(Recording(work))
        return made[-1]

    monkeypatch.setattr(Recorder, "record", record)
    monkeypatch.setenv("NANO3_BACKEND", "eager")
    monkeypatch.setitem(FUNCTIONS, "mamba_step", mamba._padded)
    monkeypatch.setitem(FUNCTIONS, "grouped_mlp", grouped.GroupedExperts.apply)
    monkeypatch.setitem(FUNCTIONS, "paged_decode", paged.decode_table)
    dispatch._chosen.cache_clear()
    yield made
    dispatch._chosen.cache_clear()


@pytest.mark.parametrize("count", [3, 14])
def test_recorded_steps_give_the_same_texts(model, tokenizer, recordings, monkeypatch, count):
    """Nothing that changes from step to step is in anything but the tensors that a step fills."""
    monkeypatch.setenv("NANO3_GRAPHS", "1")
    _, got = outputs(model, tokenizer, count, memory=1 << 19, max_context=128)
    assert sum(recording.replays for recording in recordings) > 2 * len(recordings)
    monkeypatch.setenv("NANO3_GRAPHS", "0")
    _, expected = outputs(model, tokenizer, count, memory=1 << 19, max_context=128)
    assert_same_texts(model, tokenizer, requests(count), got, expected)


@pytest.mark.parametrize("graphs", ["0", "1"])
def test_the_engine_decodes_by_mamba_step_alone(model, tokenizer, monkeypatch, graphs):
    """The ops that it holds, which no GPU has kernels for, are for a model that is called with a state of its own."""

    def refuse(*_arguments, **_options):
        raise AssertionError("an op of one token without slots was called")

    for op in ("causal_conv1d_step", "ssd_step"):
        monkeypatch.setattr(mamba2, op, refuse)
    monkeypatch.setenv("NANO3_GRAPHS", graphs)
    _, got = outputs(model, tokenizer, 3, speculate=2)
    assert all(output.tokens for output in got)
    with pytest.raises(AssertionError, match="without slots"):
        model(torch.tensor([[5]]), state=HybridState.empty(model.cfg, 1))


def test_recorded_steps_see_new_weights(model, tokenizer, recordings, monkeypatch):
    engine = Engine(model, tokenizer, memory=1 << 20, max_context=64, page_size=32)
    texts = []
    for graphs, factor in (("1", -1), ("1", -1), ("1", 1), ("0", 1)):
        monkeypatch.setenv("NANO3_GRAPHS", graphs)
        texts.append([output.ids for group in run(engine, requests(2)) for output in group])
        with torch.no_grad():
            model.lm_head.weight.mul_(factor)
        engine.weights_changed()
    assert texts[0] == texts[2] == texts[3] != texts[1]
    assert sum(recording.replays for recording in recordings) > 2 * len(recordings)


class Entered:
    """What PyTorch's CUDA functions are given, in order: on a machine without a GPU."""

    def __init__(self, monkeypatch):
        self.calls = []
        for name in ("device", "stream", "graph"):
            monkeypatch.setattr(torch.cuda, name, self.context(name))
        for name in ("Stream", "current_stream"):
            monkeypatch.setattr(torch.cuda, name, lambda device, name=name: (name, device))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))

    def context(self, name):
        @contextmanager
        def enter(given, **options):
            self.calls.append((name, options.get("stream", given)))
            yield

        return enter


def test_a_graph_is_recorded_on_the_device_of_the_model(monkeypatch):
    """And not on the current one, where nothing of the model's work takes place."""
    entered, device = Entered(monkeypatch), torch.device("cuda", 1)
    assert Recorder(device).record(lambda: entered.calls.append("work"))
    of_before, of_graph = ("stream", ("current_stream", device)), ("graph", ("Stream", device))
    assert entered.calls == [("device", device), of_before, of_graph, "work"]


@pytest.mark.parametrize("waiting", [None, Router, Mamba2])
def test_a_wait_for_the_gpu_is_found_and_hurts_no_other_thread(model, monkeypatch, waiting):
    """PyTorch's mode, which is the process's, stood in for: a warning at each wait, an error where it was asked for."""
    modes, elsewhere = ["default"], []

    def wait():
        if modes[-1] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        if modes[-1] == "warn":
            warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)

    def hook(module, *_):
        thread = Thread(target=lambda: elsewhere.append(wait()))
        thread.start()
        thread.join()
        if waiting and isinstance(module, waiting):
            wait()

    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    pool = StatePool(model.cfg, n_slots=1, n_pages=1, page_size=8)
    handle = torch.nn.modules.module.register_module_forward_pre_hook(hook)
    try:
        with torch.inference_mode():
            problem = graphed._waits(model, pool.blocks, torch.device("cpu"))
    finally:
        handle.remove()
    assert problem is None if waiting is None else "makes the host wait for the GPU" in problem
    assert waiting is None or problem.partition("(")[2].startswith("MoE" if waiting is Router else "Mamba2")
    assert modes[-1] == "default"
    assert len(modes) > 2
    assert elsewhere
