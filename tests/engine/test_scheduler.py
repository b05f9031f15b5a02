"""Random arrivals, aborts and shortage of memory: every finished answer is what the request gives alone."""

import random
from itertools import pairwise

import pytest

from nano3.engine.engine import Engine
from nano3.engine.output import Output
from nano3.engine.protocol import run
from nano3.engine.request import Request, Sampling
from nano3.engine.scheduler import _worth_keeping
from nano3.model.state.pool import page_bytes, slot_bytes

PAGE, EVERY = 8, 32


def memory_for(model, slots, pages):
    cfg, dtype = model.cfg, model.compute_dtype
    return slots * slot_bytes(cfg, dtype) + pages * page_bytes(cfg, PAGE, dtype)


def random_request(rng, number, heads):
    head = rng.choice(heads)
    length = rng.choice([0, 1, 5, 30, 100])
    ids = head[: rng.choice([1, 31, 32, 33, 64, len(head)])] + tuple(rng.randrange(7, 300) for _ in range(length))
    sampling = Sampling(
        temperature=rng.choice([0, 0, 0.7, 1.3]),
        top_p=rng.choice([1, 0.8]),
        repetition_penalty=rng.choice([1, 1, 1.2]),
        seed=number,
        max_tokens=rng.choice([1, 3, 20, 60]),
        ignore_eos=rng.random() < 0.5,
        log_probs=rng.choice([None, 2]),
        prompt_log_probs=rng.choice([None, None, None, 0]),
    )
    return Request(f"r{number}", ids, sampling, n=rng.choice([1, 1, 1, 3]), cache_at=(rng.randrange(1, 99),))


def alone(model, tokenizer, request):
    engine = Engine(model, tokenizer, memory=64 << 20, max_context=512, prefix_cache=False)
    return run(engine, [request])[0]


def same(got, expected):
    assert got.ids == expected.ids
    assert (got.text, got.finish, got.stop_reason) == (expected.text, expected.finish, expected.stop_reason)
    for a, b in zip(
        [*got.tokens, *(got.prompt or ())[1:]], [*expected.tokens, *(expected.prompt or ())[1:]], strict=True
    ):
        assert a.log_prob == pytest.approx(b.log_prob, abs=1e-4)
        assert a.sampled_log_prob == pytest.approx(b.sampled_log_prob, abs=1e-4)


def drive(engine, rng, requests, abort_share):
    """Feed requests at random times, abort some at random times; outputs of those that were left alone."""
    outputs, aborted, waiting = {}, set(), list(requests)
    while waiting or engine.has_work:
        for _ in range(rng.choice([0, 0, 1, 4])):
            if waiting:
                request = waiting.pop()
                engine.add(request)
                outputs[request.id] = [Output(i) for i in range(request.n)]
        for update in engine.step():
            assert update.request_id not in aborted
            outputs[update.request_id][update.index].add(update)
        if outputs and rng.random() < abort_share:
            victim = rng.choice(list(outputs))
            if any(output.finish is None for output in outputs[victim]):
                aborted.add(victim)
                del outputs[victim]
            engine.abort(victim)
    return outputs


@pytest.mark.parametrize("seed", range(4))
def test_results_depend_on_the_request_alone(model, tokenizer, seed):
    rng = random.Random(seed)
    heads = [tuple(rng.randrange(7, 300) for _ in range(150)) for _ in range(3)]
    requests = [random_request(rng, number, heads) for number in range(18)]
    engine = Engine(
        model,
        tokenizer,
        memory=memory_for(model, rng.choice([5, 12, 40]), rng.choice([68, 90, 400])),
        max_sequences=rng.choice([3, 8, 16]),
        max_context=512,
        page_size=PAGE,
        snapshot_every=EVERY,
        step_tokens=rng.choice([7, 64, 500]),
        mixed_step_tokens=rng.choice([1, 20]),
        speculate=rng.choice([0, 0, 3]),
    )
    outputs = drive(engine, rng, requests, abort_share=0.03)
    by_id = {request.id: request for request in requests}
    assert len(outputs) > 6
    for request_id, got in outputs.items():
        for one, expected in zip(got, alone(model, tokenizer, by_id[request_id]), strict=True):
            same(one, expected)
    left = engine.stats()
    assert (left.running, left.waiting) == (0, 0)
    assert left.slots_used == len(engine.cache)
    engine.cache.clear()
    assert (engine.stats().slots_used, engine.stats().pages_used) == (0, 0)


def test_sequences_that_lose_their_memory_end_up_the_same(model, tokenizer):
    engine = Engine(
        model,
        tokenizer,
        memory=memory_for(model, 8, 40),
        max_sequences=8,
        max_context=304,
        page_size=PAGE,
        snapshot_every=EVERY,
    )
    sampling = [Sampling(temperature=t, seed=3, max_tokens=150, ignore_eos=True) for t in (0, 0.9)]
    requests = [Request(f"r{i}", tuple(range(10 + i, 30 + i)), sampling[i % 2]) for i in range(8)]
    outputs = run(engine, requests)
    assert engine.stats().preemptions > 3
    for request, (output,) in zip(requests, outputs, strict=True):
        same(output, alone(model, tokenizer, request)[0])


def test_a_prompt_that_loses_its_memory_while_it_is_scored_is_scored_once(model, tokenizer):
    engine = Engine(
        model,
        tokenizer,
        memory=memory_for(model, 3, 26),
        max_context=200,
        page_size=PAGE,
        step_tokens=20,
        mixed_step_tokens=1,
    )
    growing = Request("old", tuple(range(20, 30)), Sampling(temperature=0, max_tokens=150, ignore_eos=True))
    scored = Request("young", tuple(range(10, 110)), Sampling(max_tokens=0, prompt_log_probs=0))
    _, (output,) = run(engine, [growing, scored])
    assert engine.stats().preemptions > 0
    same(output, alone(model, tokenizer, scored)[0])


def test_first_come_first_served(model, tokenizer):
    engine = Engine(model, tokenizer, memory=64 << 20, max_sequences=2, max_context=512)
    for i in range(6):
        engine.add(Request(f"r{i}", (9, 10, 11 + i), Sampling(temperature=0, max_tokens=5, ignore_eos=True)))
    finished = []
    while engine.has_work:
        finished += [update.request_id for update in engine.step() if update.finish]
    assert finished == [f"r{i}" for i in range(6)]


def test_decoding_goes_on_beside_a_long_prompt(model, tokenizer):
    engine = Engine(model, tokenizer, memory=64 << 20, max_context=2048, mixed_step_tokens=50)
    engine.add(Request("chat", (9, 10, 11), Sampling(temperature=0, max_tokens=100, ignore_eos=True)))
    engine.step()
    engine.add(Request("long", tuple(range(7, 307)) * 4, Sampling(temperature=0, max_tokens=1)))
    steps = 0
    while engine.progress("long") is not None:
        assert any(update.request_id == "chat" for update in engine.step())
        steps += 1
    assert steps == 24


def test_a_request_that_waits_for_memory_leaves_the_kept_prefixes_alone(model, tokenizer):
    sizes = {"memory": memory_for(model, 4, 66), "max_context": 520, "page_size": PAGE, "snapshot_every": EVERY}
    engine = Engine(model, tokenizer, **sizes, max_sequences=3)
    short = Sampling(temperature=0, max_tokens=1, ignore_eos=True)
    run(engine, [Request("kept", tuple(range(10, 60)), short)])
    engine.add(Request("long", tuple(range(20, 40)), Sampling(temperature=0, max_tokens=400, ignore_eos=True)))
    for _ in range(200):
        engine.step()
    engine.add(Request("waits", tuple(range(30, 300)) + tuple(range(30, 180)), short))
    before, entries = engine.stats(), len(engine.cache)
    for _ in range(10):
        engine.step()
    after = engine.stats()
    assert (after.waiting, after.cache_queries, len(engine.cache)) == (1, before.cache_queries, entries)


def test_long_prompts_keep_states_ever_more_sparsely():
    kept = [p for p in range(256, (1 << 20) + 1, 256) if _worth_keeping(p, 256)]
    assert kept[:64] == list(range(256, 64 * 256 + 1, 256))
    assert len(kept) < 400
    assert max(b - a for a, b in pairwise(kept)) <= (1 << 20) // 16
