"""Engine(exact=True): a request's tokens and log-probabilities are equal to the last bit, whatever is beside it."""

import copy
import random

import pytest
import torch

from nano3.config.errors import UserError
from nano3.engine.engine import Engine
from nano3.engine.passes import Passes
from nano3.engine.protocol import run
from nano3.engine.request import Request, Sampling
from nano3.engine.sequence_sampler import SequenceSampler

EAGER = ("NANO3_BACKEND", "eager")


def prompt(length, seed=0, vocab=300):
    rng = random.Random(seed)
    return tuple(rng.randrange(7, vocab) for _ in range(length))


def requests(n):
    """Of all kinds of sampling, with prompts that end on, before and behind a piece's end, and two that begin alike."""
    kinds = [
        {"temperature": 0},
        {"temperature": 0.8},
        {"top_p": 0.9},
        {"log_probs": 2},
        {"prompt_log_probs": 1},
        {"repetition_penalty": 1.2},
    ]
    found = []
    for i in range(n):
        sampling = Sampling(seed=i, max_tokens=7, ignore_eos=True, **kinds[i % len(kinds)])
        length = (1, 70, 32, 33, 97, 2)[i % 6]
        found.append(Request(f"r{i}", prompt(length, seed=i % 4), sampling, n=1 + i % 2))
    return found


def engine_of(model, tokenizer, exact=True, **options):
    options = {"memory": 64 << 20, "page_size": 8, "snapshot_every": 32, "exact": exact, **options}
    return Engine(model, tokenizer, **options)


def facts(outputs):
    """All numbers of all outputs, NaN as None."""
    found = []
    for output in (o for group in outputs for o in group):
        assert output.finish == "length"
        scores = [(t.id, None if t.log_prob != t.log_prob else t.log_prob, t.top) for t in output.prompt or ()]
        found.append([(t.id, t.log_prob, t.sampled_log_prob, t.top) for t in output.tokens] + scores)
    return found


def alone(model, tokenizer, wanted, **options):
    return [facts(run(engine_of(model, tokenizer, **options), [request])) for request in wanted]


def together(engine, wanted):
    return [facts([outputs]) for outputs in run(engine, wanted)]


@pytest.fixture(params=["float32", "bfloat16", "bfloat16 eager", "float32 eager"])
def typed(request, model, monkeypatch):
    """The model in one type, with C++ and, as at the instruction level `none`, without it."""
    dtype, *eager = request.param.split()
    if eager:
        monkeypatch.setenv(*EAGER)
    return copy.deepcopy(model).to_dtype(getattr(torch, dtype))


def test_alone_in_a_crowd_in_other_chunks_from_the_cache_and_after_preemption(typed, tokenizer):
    wanted = requests(12)
    expected = alone(typed, tokenizer, wanted)
    crowd = engine_of(typed, tokenizer)
    assert together(crowd, wanted) == expected
    assert crowd.stats().cache_hits > 0
    before = crowd.stats().cached_tokens
    assert together(crowd, wanted) == expected
    assert crowd.stats().cached_tokens > before + 32 * 4
    assert together(engine_of(typed, tokenizer, step_tokens=5, mixed_step_tokens=3), wanted) == expected
    assert together(engine_of(typed, tokenizer, prefix_cache=False, max_sequences=3), wanted) == expected
    tight = engine_of(typed, tokenizer, memory=160_000, max_context=128)
    assert together(tight, wanted) == expected
    assert tight.stats().preemptions > 0


def test_a_turn_that_begins_with_an_earlier_output(typed, tokenizer):
    """What was decoded is not taken for what a prompt computes."""
    engine = engine_of(typed, tokenizer)
    ask = Sampling(temperature=0, max_tokens=40, ignore_eos=True)
    [[first]] = run(engine, [Request("a", prompt(60), ask)])
    turn = Request("b", (*prompt(60), *first.ids, *prompt(5, 9)), ask)
    assert together(engine, [turn]) == alone(typed, tokenizer, [turn])
    longer = Request("c", (*turn.prompt, 20, 21), ask)
    assert together(engine, [longer]) == alone(typed, tokenizer, [longer])


def test_exact_is_the_model_itself(model, tokenizer):
    wanted = requests(6)
    for exact, fast in zip(alone(model, tokenizer, wanted), alone(model, tokenizer, wanted, exact=False), strict=True):
        for one, other in zip(exact, fast, strict=True):
            assert [row[0] for row in one] == [row[0] for row in other]
            numbers = [[row[1] for row in rows if row[1] is not None] for rows in (one, other)]
            assert numbers[0] == pytest.approx(numbers[1], abs=1e-4)


def test_prompts_get_on_beside_decoding_however_short_the_steps(model, tokenizer):
    engine = engine_of(model, tokenizer, mixed_step_tokens=1)
    engine.add(Request("long", prompt(3), Sampling(max_tokens=200, ignore_eos=True)))
    engine.step()
    engine.step()
    engine.add(Request("late", prompt(100), Sampling(max_tokens=1)))
    steps = 0
    while engine.progress("late") is not None:
        engine.step()
        steps += 1
    assert steps <= 6
    assert engine.progress("long") is not None


@pytest.mark.parametrize("sampling", [{"log_probs": 3}, {"logit_bias": {3: 1.0}, "top_p": 0.8}, {"min_tokens": 5}])
def test_a_row_alone_is_summed_like_one_among_others(model, sampling):
    """Long rows, which PyTorch shares out to threads if there is but one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        passes = Passes(model, None, 80_000, exact=True)
        logits = torch.randn(9, 80_000, generator=torch.Generator().manual_seed(0)) * 3
        rows = [
            SequenceSampler(Sampling(seed=i, **sampling), (), seed=i, eos_ids=frozenset(), vocab_size=80_000)
            for i in range(9)
        ]
        expected = [passes.sample(logits[i : i + 1], rows[i : i + 1])[0] for i in range(9)]
        assert passes.sample(logits, rows) == expected
    finally:
        torch.set_num_threads(threads)


def test_guesses_are_refused(model, tokenizer):
    with pytest.raises(UserError, match="exact and speculate"):
        engine_of(model, tokenizer, speculate=2)
