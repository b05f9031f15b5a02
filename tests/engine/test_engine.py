"""The engine's answers equal those of the model run alone, whatever happens beside them."""

import copy
import math
import random
import tracemalloc
import weakref
from dataclasses import replace

import pytest
import torch

import nano3
from nano3.config.errors import UserError
from nano3.engine.engine import Engine
from nano3.engine.protocol import run
from nano3.engine.request import Grammar, Request, Sampling, ThinkingBudget
from nano3.model.attention import Attention

GREEDY = Sampling(temperature=0, max_tokens=12, ignore_eos=True)


def engine_of(model, tokenizer, **options):
    return Engine(model, tokenizer, **{"memory": 64 << 20, "page_size": 8, "snapshot_every": 32, **options})


def prompt(length, seed=0, vocab=300):
    rng = random.Random(seed)
    return tuple(rng.randrange(7, vocab) for _ in range(length))


@torch.inference_mode()
def alone(model, ids, count, limit):
    """Greedy continuation by whole forward passes: (ids, log-probabilities)."""
    ids, log_probs = list(ids), []
    for _ in range(count):
        logits = model(torch.tensor([ids]))[0, -1].float()
        best = int(logits[:limit].argmax())
        log_probs.append(float(logits.log_softmax(-1)[best]))
        ids.append(best)
    return ids[-count:], log_probs


def one(engine, ids, sampling=GREEDY, **more):
    return run(engine, [Request("one", tuple(ids), sampling, **more)])[0]


def assert_same(output, ids, log_probs):
    assert output.ids == list(ids)
    assert [token.log_prob for token in output.tokens] == pytest.approx(list(log_probs), abs=1e-4)


@pytest.mark.parametrize("length", [1, 2, 31, 33, 200])
def test_greedy_equals_whole_forward_passes(model, tokenizer, length):
    (output,) = one(engine_of(model, tokenizer), prompt(length))
    assert_same(output, *alone(model, prompt(length), 12, tokenizer.vocab_size))
    assert output.finish == "length"
    assert output.text == tokenizer.decode(output.ids, skip_special=True)


@pytest.mark.parametrize("backend", ["", "eager", "reference"])
@pytest.mark.parametrize("length", [2, 33, 200])
def test_keys_and_values_in_bfloat16_beside_float32_states(model, tokenizer, monkeypatch, backend, length):
    monkeypatch.setenv("NANO3_BACKEND", backend)
    engine = engine_of(model, tokenizer, kv_dtype=torch.bfloat16)
    (output,) = one(engine, prompt(length))
    rounded = copy.deepcopy(model)
    for block in (b for b in rounded.blocks if isinstance(b.mixer, Attention)):
        for projection in (block.mixer.k_proj, block.mixer.v_proj):
            projection.register_forward_hook(lambda module, given, y: y.bfloat16().float())
    expected = alone(rounded, prompt(length), 12, tokenizer.vocab_size)
    assert_same(output, *expected)
    plain = alone(model, prompt(length), 12, tokenizer.vocab_size)
    assert [token.log_prob for token in output.tokens] != pytest.approx(plain[1], abs=1e-5)
    pool = [block for block in engine._scheduler.pool.blocks if block is not None]
    assert {t.dtype for b in pool for t in vars(b).values() if isinstance(t, torch.Tensor)} == {
        torch.float32,
        torch.bfloat16,
    }


@pytest.mark.parametrize(
    "options", [{"step_tokens": 5, "mixed_step_tokens": 3}, {"prefix_cache": False}, {"speculate": 4}]
)
def test_settings_change_no_answer(model, tokenizer, options):
    engine = engine_of(model, tokenizer, **options)
    requests = [Request(str(i), prompt(n, i), GREEDY) for i, n in enumerate([3, 40, 90, 150])]
    for request, (output,) in zip(requests, run(engine, requests), strict=True):
        assert_same(output, *alone(model, request.prompt, 12, tokenizer.vocab_size))


def test_same_seed_same_output_alone_or_in_a_crowd(model, tokenizer):
    sampling = Sampling(temperature=0.8, top_p=0.9, seed=7, max_tokens=20, ignore_eos=True)
    engine = engine_of(model, tokenizer)
    (expected,) = one(engine, prompt(20), sampling)
    crowd = [Request(f"r{i}", prompt(5 + i, i), Sampling(max_tokens=30)) for i in range(9)]
    outputs = run(engine, [*crowd[:4], Request("x", prompt(20), sampling), *crowd[4:]])
    assert outputs[4][0].ids == expected.ids
    (again,) = one(engine_of(model, tokenizer), prompt(20), Sampling(temperature=0.8, top_p=0.9, max_tokens=20))
    assert again.ids != expected.ids


def test_sampled_log_probs_are_those_of_the_distribution_drawn_from(model, tokenizer):
    (output,) = one(engine_of(model, tokenizer), prompt(9), Sampling(temperature=0.5, seed=3, max_tokens=15))
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt(9), *output.ids]]))[0, 8:-1].float()
    for row, token in zip(logits, output.tokens, strict=True):
        assert token.log_prob == pytest.approx(float(row.log_softmax(-1)[token.id]), abs=1e-4)
        warm = (row[: tokenizer.vocab_size] / 0.5).log_softmax(-1)
        assert token.sampled_log_prob == pytest.approx(float(warm[token.id]), abs=1e-4)


def test_n_outputs_share_the_prompt(model, tokenizer):
    engine = engine_of(model, tokenizer)
    outputs = one(engine, prompt(200), Sampling(seed=5, max_tokens=10, ignore_eos=True), n=4)
    assert len({tuple(o.ids) for o in outputs}) == 4
    assert engine.stats().computed_tokens < 300
    (first,) = one(engine, prompt(200), Sampling(seed=5, max_tokens=10, ignore_eos=True))
    assert first.ids == outputs[0].ids


def test_waiting_outputs_share_one_prompt(model, tokenizer):
    engine = engine_of(model, tokenizer, max_context=60_000, memory=128 << 20)
    request = Request("r", prompt(50_000), Sampling(repetition_penalty=1.2, max_tokens=2), n=128)
    tracemalloc.start()
    try:
        engine.add(request)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 10_000_000


def test_second_identical_prompt_comes_from_the_cache(model, tokenizer):
    engine = engine_of(model, tokenizer)
    (first,) = one(engine, prompt(500))
    before = engine.stats()
    (second,) = one(engine, prompt(500))
    assert (first.cached_tokens, second.cached_tokens) == (0, 499)
    assert engine.stats().computed_tokens - before.computed_tokens == 12
    assert engine.stats().cache_hits == 1
    assert_same(second, first.ids, [t.log_prob for t in first.tokens])


@pytest.mark.parametrize("common", [40, 64, 100, 300, 333])
def test_common_beginning_comes_from_the_cache(model, tokenizer, common):
    engine = engine_of(model, tokenizer)
    one(engine, prompt(400))
    other = prompt(400)[:common] + prompt(50, seed=9)
    (output,) = one(engine, other)
    assert output.cached_tokens == common // 32 * 32
    assert_same(output, *alone(model, other, 12, tokenizer.vocab_size))


def test_kept_points_and_finished_outputs_are_found_again(model, tokenizer):
    engine = engine_of(model, tokenizer)
    (first,) = one(engine, prompt(100), cache_at=(77,))
    (turn,) = one(engine, prompt(100)[:77] + prompt(40, 5))
    assert turn.cached_tokens == 77
    following = (*prompt(100), *first.ids, *prompt(10, 6))
    (after,) = one(engine, following)
    assert after.cached_tokens == 100 + len(first.ids) - 1
    assert_same(after, *alone(model, following, 12, tokenizer.vocab_size))


def test_prompt_log_probs(model, tokenizer):
    ids = prompt(300)
    (output,) = one(engine_of(model, tokenizer, step_tokens=70), ids, Sampling(max_tokens=0, prompt_log_probs=2))
    with torch.inference_mode():
        expected = model(torch.tensor([ids]))[0].log_softmax(-1)
    assert output.ids == []
    assert math.isnan(output.prompt[0].log_prob)
    assert [t.id for t in output.prompt] == list(ids)
    for position, token in enumerate(output.prompt[1:]):
        assert token.log_prob == pytest.approx(float(expected[position, ids[position + 1]]), abs=1e-4)
        assert token.top[0][1] == pytest.approx(float(expected[position, : tokenizer.vocab_size].max()), abs=1e-4)


def test_stops(model, tokenizer):
    engine = engine_of(model, tokenizer)
    (free,) = one(engine, prompt(20))
    (by_id,) = one(engine, prompt(20), Sampling(temperature=0, max_tokens=12, stop_ids=(free.ids[5],), ignore_eos=True))
    cut = free.ids.index(free.ids[5])
    assert (by_id.ids, by_id.finish, by_id.stop_reason) == (free.ids[: cut + 1], "stop", free.ids[5])
    assert by_id.text == tokenizer.decode(free.ids[:cut], skip_special=True)
    word = free.text[4:7]
    (by_text,) = one(engine, prompt(20), Sampling(temperature=0, max_tokens=12, stop=(word,), ignore_eos=True))
    assert (by_text.text, by_text.stop_reason) == (free.text[: free.text.index(word)], word)


def test_a_penalty_on_prompt_ids_beyond_the_tokenizer_is_no_matter(model, tokenizer):
    beyond = model.cfg.vocab_size - 1
    assert beyond >= tokenizer.vocab_size
    sampling = Sampling(temperature=0, repetition_penalty=1.5, max_tokens=4, ignore_eos=True)
    (output,) = one(engine_of(model, tokenizer), (beyond, *prompt(6)), sampling)
    assert (len(output.ids), output.finish) == (4, "length")


def test_end_of_text_ends_unless_ignored_or_too_early(model, tokenizer):
    bias = {tokenizer.eos_id: 100.0}
    engine = engine_of(model, tokenizer)
    (ended,) = one(engine, prompt(5), Sampling(logit_bias=bias, max_tokens=9))
    assert (ended.ids, ended.finish, ended.text) == ([tokenizer.eos_id], "stop", "")
    (least,) = one(engine, prompt(5), Sampling(logit_bias=bias, max_tokens=9, min_tokens=4))
    assert len(least.ids) == 5
    (ignored,) = one(engine, prompt(5), Sampling(logit_bias=bias, max_tokens=9, ignore_eos=True))
    assert ignored.ids == [tokenizer.eos_id] * 9


def test_grammar_and_thinking_budget_together(model, tokenizer):
    sampling = Sampling(
        seed=2,
        max_tokens=200,
        thinking=ThinkingBudget(5, grace=3),
        grammar=Grammar("regex", "[0-9]{3}", after_thinking=True),
    )
    (output,) = one(engine_of(model, tokenizer, speculate=3), prompt(12), sampling)
    _thought, answer = output.text.split("</think>")
    assert answer.isdigit()
    assert len(answer) == 3
    assert sum(token.forced for token in output.tokens) >= 1
    assert output.finish == "stop"


def test_context_end_is_a_length_finish(model, tokenizer):
    engine = engine_of(model, tokenizer, max_context=64)
    (output,) = one(engine, prompt(60), Sampling(temperature=0, ignore_eos=True))
    assert (len(output.ids), output.finish) == (4, "length")
    with pytest.raises(ValueError, match=r"prompt of 64 tokens is too long: .* 64"):
        engine.add(Request("long", prompt(64)))


def test_bad_requests_are_refused_and_leave_nothing(model, tokenizer):
    engine = engine_of(model, tokenizer)
    engine.add(Request("a", prompt(3)))
    bad = [
        Request("a", prompt(3)),
        Request("b", (5, 99999)),
        Request("c", prompt(3), Sampling(grammar=Grammar("regex", "["))),
        Request("d", prompt(3), Sampling(logit_bias={10**6: 1.0})),
    ]
    for request in bad:
        with pytest.raises(ValueError, match=r"in use|no token|egex|logit_bias"):
            engine.add(request)
    engine.abort("a")
    assert not engine.has_work
    assert engine.stats().waiting == 0


def test_small_memory_lowers_concurrency_and_says_so(model, tokenizer):
    engine = engine_of(model, tokenizer, memory=200_000, max_context=512)
    assert engine.sizes.max_sequences < 64
    assert "at most" in engine.sizes.notes[0]
    assert engine.sizes.total_bytes <= 200_000
    requests = [Request(str(i), prompt(60, i), GREEDY) for i in range(12)]
    for request, (output,) in zip(requests, run(engine, requests), strict=True):
        assert_same(output, *alone(model, request.prompt, 12, tokenizer.vocab_size))
    with pytest.raises(UserError, match="no room for one sequence"):
        engine_of(model, tokenizer, memory=1000)


def test_progress_of_a_long_prompt(model, tokenizer):
    engine = engine_of(model, tokenizer, step_tokens=32)
    engine.add(Request("r", prompt(100), GREEDY))
    seen = []
    while engine.has_work:
        engine.step()
        seen.append(engine.progress("r"))
    assert seen[:3] == [(32, 100), (64, 100), (96, 100)]
    assert seen[-1] is None


def test_public_name(model, tokenizer):
    assert nano3.Engine is Engine


@pytest.mark.parametrize("cut", [{"temperature": 0}, {}, {"top_p": 0.9}, {"min_p": 0.1}, {"logit_bias": {5: 1.0}}])
def test_weights_without_numbers_end_in_an_error(model, tokenizer, cut):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.norm_f.weight.fill_(torch.nan)
    (output,) = one(engine_of(broken, tokenizer), prompt(5), Sampling(**cut))
    assert (output.ids, output.finish) == ([], "error")
    assert "weights may be damaged" in output.error


def test_a_request_that_leaves_no_token_fails_alone(model, tokenizer):
    nothing = Sampling(logit_bias=dict.fromkeys(range(tokenizer.vocab_size), -math.inf))
    (fine,), (lost,) = run(
        engine_of(model, tokenizer), [Request("a", prompt(9), GREEDY), Request("b", prompt(7), nothing)]
    )
    assert_same(fine, *alone(model, prompt(9), 12, tokenizer.vocab_size))
    assert (lost.ids, lost.finish) == ([], "error")
    assert "no token can come next" in lost.error


def test_a_grammar_whose_tokens_are_stops_goes_before_min_tokens(model, tokenizer):
    stop = tokenizer.encode("a")[0]
    sampling = Sampling(grammar=Grammar("regex", "a"), stop_ids=(stop,), min_tokens=1)
    (output,) = one(engine_of(model, tokenizer), prompt(5), sampling)
    assert (output.ids, output.finish, output.stop_reason) == ([stop], "stop", stop)


def test_more_sequences_than_a_step_takes(model, tokenizer):
    """70 decode together, first beside prompts and then alone."""
    engine = engine_of(model, tokenizer, max_sequences=70, mixed_step_tokens=40)
    requests = [Request(str(i), prompt(3 + i % 7, seed=i), replace(GREEDY, max_tokens=6)) for i in range(70)]
    outputs = run(engine, requests)
    for i in (0, 1, 33, 63, 64, 69):
        assert_same(outputs[i][0], *alone(model, prompt(3 + i % 7, seed=i), 6, tokenizer.vocab_size))


def nudged(model):
    """A copy whose weights change in place, as an optimizer would."""
    model = copy.deepcopy(model)

    def nudge():
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))

    return model, nudge


def test_changed_weights_answer_with_nothing_of_the_old_ones(model, tokenizer):
    changing, nudge = nudged(model)
    engine = engine_of(changing, tokenizer)
    (old,) = one(engine, prompt(200))
    nudge()
    assert engine.weights_changed() == 1
    (new,) = one(engine, prompt(200))
    assert (old.weights_version, new.weights_version) == (0, 1)
    assert new.cached_tokens == 0
    assert_same(new, *alone(changing, prompt(200), 12, tokenizer.vocab_size))
    (again,) = one(engine, prompt(200))
    assert (again.cached_tokens, again.weights_version) == (199, 1)
    assert_same(again, new.ids, [t.log_prob for t in new.tokens])


def test_weights_change_under_no_sequence_that_has_begun(model, tokenizer):
    """Those that wait run with the new weights; one that gave its memory up has tokens of the old ones."""
    changing, nudge = nudged(model)
    engine = engine_of(changing, tokenizer, max_sequences=1)
    for name in ("first", "waiting"):
        engine.add(Request(name, prompt(50), GREEDY))
    engine.step()
    with pytest.raises(RuntimeError, match="1 sequences were under way"):
        engine.weights_changed()
    engine._scheduler._preempt(engine._scheduler.running[0])
    with pytest.raises(RuntimeError, match="1 sequences were under way"):
        engine.weights_changed()
    engine.abort("first")
    nudge()
    assert engine.weights_changed() == 1
    updates = []
    while engine.has_work:
        updates += engine.step()
    assert {u.weights_version for u in updates} == {1}
    assert [t.id for u in updates for t in u.tokens] == alone(changing, prompt(50), 12, tokenizer.vocab_size)[0]


def test_the_model_keeps_its_mode(model, tokenizer):
    training = copy.deepcopy(model).train()
    engine = engine_of(training, tokenizer)
    assert_same(one(engine, prompt(40))[0], *alone(model, prompt(40), 12, tokenizer.vocab_size))
    assert all(module.training for module in training.modules())


def test_a_closed_engine_gives_its_states_back(model, tokenizer):
    engine = engine_of(model, tokenizer)
    one(engine, prompt(9))
    blocks = [vars(block) for block in engine._scheduler.pool.blocks if block is not None]
    states = [weakref.ref(tensor) for block in blocks for tensor in block.values() if isinstance(tensor, torch.Tensor)]
    del blocks
    assert all(state() is not None for state in states)
    assert states
    engine.close()
    assert not any(state() is not None for state in states)
