import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nano3.engine.request import Sampling
from nano3.engine.sampler import sample, score
from nano3.engine.sequence_sampler import SequenceSampler, derive_seed

EOS = 3


def state(sampling, prompt=(5, 6), seed=0, vocab_size=64, output=(), eos_ids=(EOS,)):
    row = SequenceSampler(sampling, prompt, seed=seed, eos_ids=frozenset(eos_ids), vocab_size=vocab_size)
    for token in output:
        row.accept(token)
    return row


def reference_logits(logits, s, prompt, output):
    """Penalties, bias and min_tokens of one row, in float64."""
    x = logits.astype(np.float64).copy()
    for token in set(output) | set(prompt):
        x[token] = x[token] / s.repetition_penalty if x[token] > 0 else x[token] * s.repetition_penalty
    for token in set(output):
        x[token] -= s.presence_penalty + s.frequency_penalty * list(output).count(token)
    for token, bias in s.logit_bias.items():
        x[token] += bias
    if len(output) < s.min_tokens:
        x[[*s.stop_ids, EOS] if not s.ignore_eos else list(s.stop_ids)] = -np.inf
    return x


def reference_distribution(logits, s, prompt=(), output=()):
    """The distribution drawn from, one row at a time, as documented in Sampling."""
    x = reference_logits(logits, s, prompt, output) / s.temperature
    order = sorted(range(len(x)), key=lambda i: (-x[i], i))
    p = np.exp(x - x.max())
    kept = order[: s.top_k] if s.top_k else order
    if s.top_p < 1:
        total, reached, until = p[kept].sum(), 0.0, 0
        while reached < s.top_p * total * (1 - 1e-12):
            reached += p[kept[until]]
            until += 1
        kept = kept[:until]
    kept = [i for i in kept if p[i] >= s.min_p * p.max()]
    out = np.zeros(len(x))
    out[kept] = p[kept] / p[kept].sum()
    return out


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    top_p=st.sampled_from([1.0, 0.31, 0.82, 0.97]),
    top_k=st.sampled_from([0, 1, 7, 40, 150, 300]),
    min_p=st.sampled_from([0.0, 0.013, 0.4]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    presence_penalty=st.sampled_from([0.0, 0.7]),
    frequency_penalty=st.sampled_from([0.0, 1.1, -0.5]),
    logit_bias=st.sampled_from([{}, {1: 4.0, 9: -100.0}]),
    min_tokens=st.sampled_from([0, 50]),
    stop_ids=st.sampled_from([(), (8, 9)]),
    ignore_eos=st.booleans(),
    log_probs=st.sampled_from([None, 0, 4]),
)


def check_row(token, logits, s, prompt, output):
    """One drawn token against the reference: possible, and with the log-probabilities it should have."""
    raw = logits.astype(np.float64)
    raw = raw - np.logaddexp.reduce(raw)
    assert token.log_prob == pytest.approx(raw[token.id], abs=1e-4)
    if s.temperature == 0:
        assert token.id == reference_logits(logits, s, prompt, output).argmax()
        assert token.sampled_log_prob == token.log_prob
    else:
        probability = reference_distribution(logits, s, prompt, output)[token.id]
        assert probability > 0
        assert token.sampled_log_prob == pytest.approx(math.log(probability), abs=1e-4)
    best = np.argsort(-raw, kind="stable")[: s.log_probs or 0]
    assert [i for i, _ in token.top] == list(best)
    assert [p for _, p in token.top] == pytest.approx(list(raw[best]), abs=1e-4)


@settings(max_examples=80, deadline=None)
@given(rows=st.lists(samplings, min_size=1, max_size=6), seed=st.integers(0, 2**64), data=st.data())
def test_rows_follow_the_documented_order_and_do_not_depend_on_each_other(rows, seed, data):
    vocab_size = data.draw(st.sampled_from([40, 600, 3000]))
    greedy = data.draw(st.integers(0, len(rows)))
    rows = [
        Sampling(log_probs=3, logit_bias=s.logit_bias, temperature=0) if r < greedy else s for r, s in enumerate(rows)
    ]
    logits = np.random.default_rng(seed).normal(0, data.draw(st.sampled_from([1.0, 4.0])), (len(rows), vocab_size))
    logits = logits.astype(np.float32)
    prompt, output = (5, 6, 17), (6, 1, 1, 30)
    states = [state(s, prompt, seed + r, vocab_size, output) for r, s in enumerate(rows)]
    tokens = sample(torch.from_numpy(logits), states)
    for r, token in enumerate(tokens):
        check_row(token, logits[r], rows[r], prompt, output)
        alone = sample(torch.from_numpy(logits[r : r + 1]), [states[r]])[0]
        assert alone.id == token.id
        assert alone.sampled_log_prob == pytest.approx(token.sampled_log_prob, abs=1e-6)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.6, min_p=0.05),
        Sampling(top_p=0.8),
        Sampling(top_k=5, temperature=1.5),
        Sampling(top_k=6, top_p=0.7, min_p=0.1, logit_bias={2: 1.0}),
    ],
    ids=["plain", "min_p", "top_p", "top_k", "all"],
)
def test_draws_have_the_frequencies_of_the_distribution(sampling):
    logits = torch.randn(12, generator=torch.Generator().manual_seed(1)) * 1.5
    n = 20000
    states = [state(sampling, seed=seed, vocab_size=12) for seed in range(n)]
    drawn = [token.id for token in sample(logits.expand(n, -1), states)]
    expected = reference_distribution(logits.numpy(), sampling) * n
    counts = np.bincount(drawn, minlength=12)
    possible = expected > 0
    assert not counts[~possible].any()
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    # Mean k, standard deviation sqrt(2 k) for k degrees of freedom.
    k = possible.sum() - 1
    assert chi_square < k + 5 * math.sqrt(2 * k) + 5


class Edge(SequenceSampler):
    """A row whose draw is fixed."""

    def __init__(self, u, sampling):
        super().__init__(sampling, (1,), seed=0, eos_ids=frozenset(), vocab_size=5000)
        self.u = u

    def uniform(self):
        return self.u


@pytest.mark.parametrize("u", [2.0**-54, 0.5, 1 - 2.0**-53])
@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(top_p=0.99), Sampling(top_k=900, temperature=0.01), Sampling(top_k=444)]
)
def test_tokens_without_probability_are_never_drawn(u, sampling):
    logits = torch.full((1, 5000), -math.inf)
    logits[0, 600:3700:7] = torch.linspace(-3, 3, 443)
    logits[0, 4100] = -300.0
    token = sample(logits, [Edge(u, sampling)])[0]
    assert logits[0, token.id] >= -3
    assert math.isfinite(token.sampled_log_prob)


def test_many_equal_logits_are_cut_to_the_smallest_ids():
    logits = torch.zeros(1, 4000)
    logits[0, 3999] = 1.0
    for u in (0.001, 0.3, 0.999):
        assert sample(logits, [Edge(u, Sampling(top_k=3))])[0].id in {0, 1, 3999}
        assert sample(logits, [Edge(u, Sampling(top_p=0.5))])[0].id in {*range(2000), 3999}


def test_cuts_deep_in_a_large_vocabulary_follow_the_reference():
    logits = torch.randn(2, 20000, generator=torch.Generator().manual_seed(5)).mul_(0.5)
    cuts = (
        Sampling(top_p=0.02),
        Sampling(top_p=0.4),
        Sampling(top_p=0.97),
        Sampling(top_k=9000),
        Sampling(top_p=0.5, min_p=0.5),
        Sampling(top_p=0.9, min_p=0.05, top_k=9000),
    )
    for sampling in cuts:
        states = [state(sampling, seed=seed, vocab_size=20000) for seed in (1, 2)]
        for row, token in zip(logits, sample(logits, states), strict=True):
            check_row(token, row.numpy(), sampling, (), ())


def test_ids_beyond_the_tokenizer_are_neither_drawn_nor_reported():
    logits = torch.zeros(4, 100)
    logits[:, 90:] = 20.0
    choices = [
        Sampling(log_probs=2),
        Sampling(temperature=0, log_probs=1),
        Sampling(top_p=0.5),
        Sampling(logit_bias={1: 9}),
    ]
    tokens = sample(logits, [state(s) for s in choices], ids_limit=90)
    assert all(token.id < 90 for token in tokens)
    assert all(i < 90 for token in tokens for i, _ in token.top)
    assert tokens[1].log_prob == pytest.approx(-20 - math.log(10), abs=1e-3)


def test_a_penalised_token_is_not_repeated():
    logits = torch.zeros(1, 64)
    logits[0, 7] = 1.0
    row = state(Sampling(temperature=0, presence_penalty=1.5))
    first = sample(logits, [row])[0].id
    row.accept(first)
    assert first == 7
    assert sample(logits, [row])[0].id != 7


def test_end_of_text_waits_for_min_tokens():
    logits = torch.zeros(1, 64)
    logits[0, EOS], logits[0, 8] = 9.0, 5.0
    row = state(Sampling(temperature=0, min_tokens=2, stop_ids=(8,)))
    ids = []
    for _ in range(3):
        ids.append(sample(logits, [row])[0].id)
        row.accept(ids[-1])
    assert EOS not in ids[:2]
    assert 8 not in ids[:2]
    assert ids[2] == EOS
    ignoring = state(Sampling(temperature=0, min_tokens=2, stop_ids=(8,), ignore_eos=True))
    assert sample(logits, [ignoring])[0].id == EOS


def test_a_draw_depends_on_seed_and_position_only():
    logits = torch.randn(1, 500, generator=torch.Generator().manual_seed(0))
    first, second = (state(Sampling(), seed=9, vocab_size=500) for _ in range(2))
    outputs = []
    for row, looks in ((first, 1), (second, 3)):
        ids = []
        for _ in range(20):
            tokens = [sample(logits, [row])[0].id for _ in range(looks)]
            ids.append(tokens[-1])
            row.accept(ids[-1])
        outputs.append(ids)
    assert outputs[0] == outputs[1]
    assert len(set(outputs[0])) > 10
    other = state(Sampling(), seed=10, vocab_size=500, output=outputs[0])
    assert other.uniform() != first.uniform()


def test_outputs_of_one_request_have_seeds_of_their_own():
    seeds = {derive_seed(seed, index) for seed in range(50) for index in range(50)}
    assert len(seeds) == 2500
    assert derive_seed(41, 0) == 41


def test_low_precision_logits_are_taken_and_left_alone():
    logits = torch.randn(3, 900, generator=torch.Generator().manual_seed(2)).bfloat16()
    before = logits.clone()
    choices = [Sampling(temperature=0, logit_bias={3: 5.0}), Sampling(top_p=0.9), Sampling(temperature=1e-12)]
    tokens = sample(logits, [state(s, seed=4, vocab_size=900) for s in choices])
    assert torch.equal(before, logits)
    assert logits[2, tokens[2].id] == logits[2].max()
    for token, row in zip(tokens, logits.float(), strict=True):
        assert token.log_prob == pytest.approx(row.log_softmax(-1)[token.id].item(), abs=1e-4)


def test_prompt_scores_are_those_of_log_softmax():
    logits = torch.randn(7, 50, generator=torch.Generator().manual_seed(3))
    targets = torch.tensor([4, 0, 49, 7, 7, 12, 30])
    tokens = score(logits, targets, top=3)
    expected = logits.log_softmax(-1)
    for t, token in enumerate(tokens):
        assert token.id == targets[t]
        assert token.log_prob == pytest.approx(expected[t, targets[t]].item(), abs=1e-5)
        assert [i for i, _ in token.top] == expected[t].topk(3).indices.tolist()
    assert all(token.top == () for token in score(logits, targets, top=0))


def test_a_bias_for_a_token_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="64"):
        state(Sampling(logit_bias={64: 1.0}))


@pytest.mark.parametrize("extreme", [5e-324, 1e-40, 1e39, 1.7e308])
@pytest.mark.parametrize("field", ["temperature", "repetition_penalty"])
def test_numbers_beyond_float32_still_choose_an_allowed_token(field, extreme):
    logits = torch.linspace(-9, 9, 64)[None]
    banned = (EOS, *range(20, 64))
    for cut in ({}, {"top_p": 0.9}, {"min_p": 0.1}, {"top_k": 5}):
        row = state(Sampling(**{field: extreme}, **cut, min_tokens=1, stop_ids=banned), prompt=(5, 6, 21))
        (token,) = sample(logits, [row])
        assert token.id not in banned
        assert token.log_prob <= 0
        assert token.sampled_log_prob <= 1e-6


WAYS = [
    Sampling(temperature=0),
    Sampling(temperature=0, logit_bias={1: 0.5}),
    Sampling(),
    Sampling(logit_bias={1: 0.5}),
    Sampling(min_p=0.1),
    Sampling(top_p=0.9),
    Sampling(top_k=7),
    Sampling(top_k=40, top_p=0.5, min_p=0.01),
]


@pytest.mark.parametrize("vocab_size", [64, 1024, 3000])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_without_numbers_is_told_and_leaves_the_others_alone(vocab_size, bad):
    logits = torch.randn(3, vocab_size, generator=torch.Generator().manual_seed(6))
    for sampling in WAYS:
        rows = [state(sampling, seed=seed, vocab_size=vocab_size) for seed in range(3)]
        expected = sample(logits, rows)
        broken = logits.clone()
        broken[1] = bad
        first, lost, last = sample(broken, rows)
        assert (first, last) == (expected[0], expected[2])
        assert math.isnan(lost.log_prob)
        assert 0 <= lost.id < vocab_size


@pytest.mark.parametrize("vocab_size", [64, 1024])
def test_a_row_whose_biases_leave_nothing_is_told(vocab_size):
    logits = torch.randn(1, vocab_size, generator=torch.Generator().manual_seed(6))
    for cut in ({"temperature": 0}, {}, {"top_p": 0.9}, {"top_k": 3}):
        row = state(Sampling(logit_bias=dict.fromkeys(range(vocab_size), -math.inf), **cut), vocab_size=vocab_size)
        (token,) = sample(logits, [row])
        assert math.isfinite(token.log_prob)
        assert math.isnan(token.sampled_log_prob)


@pytest.mark.parametrize("top_k", [2**40, 2**63, 2**70])
def test_a_huge_top_k_cuts_nothing(top_k):
    logits = torch.randn(1, 900, generator=torch.Generator().manual_seed(6))
    (token,) = sample(logits, [state(Sampling(top_k=top_k, top_p=0.9, seed=1), vocab_size=900)])
    (plain,) = sample(logits, [state(Sampling(top_p=0.9, seed=1), vocab_size=900)])
    assert token == plain


def test_min_tokens_gives_way_where_nothing_but_an_end_is_left():
    logits = torch.zeros(1, 64)
    row = state(Sampling(min_tokens=3, stop_ids=tuple(range(64))))
    (token,) = sample(logits, [row])
    assert token.sampled_log_prob == pytest.approx(-math.log(64), abs=1e-5)


@pytest.mark.parametrize("bias", [math.nan, math.inf, 10**400, -(10**400)])
def test_a_bias_that_is_no_number_for_logits_is_refused(bias):
    with pytest.raises(ValueError, match="logit_bias of token 4"):
        Sampling(logit_bias={4: bias})


def in_pytorch(monkeypatch, logits, rows, ids_limit=None):
    with monkeypatch.context() as patched:
        patched.setenv("NANO3_BACKEND", "eager")
        return sample(logits, rows, ids_limit)


@pytest.mark.parametrize("vocab_size", [40, 600, 4096, 9000])
@pytest.mark.parametrize("kind", ["flat", "steep", "equals", "few"])
def test_pytorch_and_cpp_choose_the_same_tokens(monkeypatch, vocab_size, kind):
    random = torch.Generator().manual_seed(vocab_size)
    choices = [
        Sampling(temperature=t, top_p=p, top_k=k, min_p=m)
        for t in (0.0, 1e-6, 0.7, 1.0, 1.5, 1e6)
        for p in (1.0, 1e-9, 0.5, 0.95)
        for k in (0, 1, 50, 5000)
        for m in (0.0, 0.05, 1.0)
    ]
    logits = torch.randn(len(choices), vocab_size, generator=random) * (6.0 if kind == "steep" else 1.0)
    if kind == "equals":
        logits = logits.round()
    if kind == "few":
        logits[:, 12:] = -math.inf
    rows = [state(s, seed=seed, vocab_size=vocab_size) for seed, s in enumerate(choices)]
    got, expected = sample(logits, rows, vocab_size - 3), in_pytorch(monkeypatch, logits, rows, vocab_size - 3)
    assert [token.id for token in got] == [token.id for token in expected]
    for name in ("log_prob", "sampled_log_prob"):
        assert [getattr(t, name) for t in got] == pytest.approx(
            [getattr(t, name) for t in expected], abs=2e-5, rel=1e-6
        )


@pytest.mark.parametrize(
    "cut", [Sampling(top_p=0.6), Sampling(top_k=9), Sampling(top_k=30, top_p=0.7), Sampling(top_p=0.9, min_p=0.2)]
)
def test_pytorch_and_cpp_leave_the_same_tokens(monkeypatch, cut):
    """The whole distribution, place by place, equal logits on both sides of the cut."""
    logits = torch.randn(1, 200, generator=torch.Generator().manual_seed(8)).mul_(2).round_()
    places = [Edge((i + 0.5) / 700, cut) for i in range(700)]
    logits = logits.expand(700, -1).contiguous()
    got = [token.id for token in sample(logits, places)]
    assert got == [token.id for token in in_pytorch(monkeypatch, logits, places)]
    assert len(set(got)) > 1


def test_rows_for_cpp_and_others_go_together():
    logits = torch.randn(6, 64, generator=torch.Generator().manual_seed(9))
    choices = [Sampling(), Sampling(log_probs=2), Sampling(temperature=0), Sampling(logit_bias={3: 50.0})]
    choices += [Sampling(top_p=0.5), Sampling(min_tokens=4)]
    rows = [state(s, seed=seed) for seed, s in enumerate(choices)]
    together = sample(logits, rows)
    assert together == [sample(logits[r : r + 1], [row])[0] for r, row in enumerate(rows)]
    assert together[3].id == 3
    assert [len(token.top) for token in together] == [0, 2, 0, 0, 0, 0]
