"""Tokens drawn in C++ against the definition in float64, token by token."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nano3.kernels.cpu.draw import NOTHING, Draw, draw_tokens
from nano3.kernels.cpu.native import native

HAVE = native().library is not None
CLOSE = 1e-5
"""Relative rounding of sums of float32 exponentials; what lies nearer than this to an edge may fall on either side."""

draws = st.builds(
    Draw,
    temperature=st.sampled_from([0.0, 1e-6, 0.3, 1.0, 1.7, 1e6]),
    top_k=st.sampled_from([0, 1, 2, 7, 40, 600, 1 << 40]),
    top_p=st.sampled_from([1.0, 1e-9, 0.31, 0.5, 0.95, 1 - 1e-12]),
    min_p=st.sampled_from([0.0, 0.013, 0.4, 1.0]),
    uniform=st.one_of(st.sampled_from([2.0**-53, 0.5, 1 - 2.0**-53]), st.floats(1e-9, 1 - 1e-9)),
)


@st.composite
def logits(draw):
    """Rows of every kind: flat and steep, on a grid with many equals, with impossible tokens."""
    width = draw(st.sampled_from([1, 2, 17, 512, 513, 1200]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = random.normal(0, draw(st.sampled_from([0.01, 1.0, 6.0, 300.0])), width)
    if draw(st.booleans()):
        x = np.round(x)
    if draw(st.booleans()):
        x[random.random(width) < draw(st.sampled_from([0.1, 0.9]))] = -np.inf
    x[random.integers(width)] = draw(st.sampled_from([0.0, 5.0]))
    return x.astype(np.float32)


def kept_counts(weights, d):
    """How many of the tokens, in order, top-k and top-p leave: the least and the most within rounding."""
    ends = np.cumsum(weights)
    most = min(d.top_k or len(weights), len(weights))
    if d.top_p == 1:
        return most, most
    share = d.top_p * ends[most - 1]
    least, last = (int(np.searchsorted(ends, share * (1 + sign * CLOSE))) + 1 for sign in (-1, 1))
    return min(least, most), min(last, most)


def check(x, limit, d, found):
    """One result against the definition."""
    token, log_prob, drawn = found
    wide = x.astype(np.float64)
    assert log_prob == pytest.approx(wide[token] - np.logaddexp.reduce(wide), abs=1e-4, rel=1e-6)
    if d.temperature == 0:
        assert token == x[:limit].argmax()
        assert drawn == log_prob
        return
    z = ((x[:limit] - x[:limit].max()) / np.float32(d.temperature)).astype(np.float64)
    is_cut = d.top_p < 1 or 0 < d.top_k < limit
    order = np.lexsort((np.arange(limit), -z)) if is_cut else np.arange(limit)
    weights = np.exp(z[order])
    floor = float(np.float32(math.log(d.min_p))) if d.min_p else -math.inf
    at = int(np.flatnonzero(order == token)[0])
    for count in range(*np.add(kept_counts(weights, d), (0, 1))) if is_cut else [limit]:
        kept = np.where(z[order] >= floor, weights, 0.0) * (np.arange(limit) < count)
        ends = np.cumsum(kept)
        low, high = (ends[at] - kept[at]) / ends[-1], ends[at] / ends[-1]
        probable = kept[at] > 0 and drawn == pytest.approx(z[token] - math.log(ends[-1]), abs=1e-4, rel=1e-6)
        if probable and low - CLOSE <= d.uniform <= high + CLOSE:
            return
    pytest.fail(f"token {token} of log-probability {drawn} is not what {d} draws")


@settings(max_examples=200, deadline=None)
@given(x=logits(), wanted=st.lists(draws, min_size=1, max_size=4), spare=st.sampled_from([0, 1, 30]))
def test_tokens_and_log_probabilities_are_those_of_the_definition(x, wanted, spare):
    if not HAVE:
        pytest.skip("needs the C++ library")
    limit = max(len(x) - spare, 1)
    if not np.isfinite(x[:limit]).any():
        x[0] = 1.0
    found = draw_tokens(torch.from_numpy(x).repeat(len(wanted), 1), limit, wanted)
    for d, token in zip(wanted, found, strict=True):
        check(x, limit, d, token)


def test_large_vocabularies():
    if not HAVE:
        pytest.skip("needs the C++ library")
    for scale in (0.5, 2.0, 8.0):
        x = np.random.default_rng(3).normal(0, scale, 50_000).astype(np.float32)
        for d in (Draw(1, 0, 1, 0, 0.3), Draw(0.7, 0, 0.95, 0, 0.9), Draw(1, 20_000, 0.9, 0.001, 0.999)):
            (token,) = draw_tokens(torch.from_numpy(x)[None], 50_000, [d])
            check(x, 50_000, d, token)


MANY = [
    Draw(t, k, p, m, u) for t in (0, 1, 0.6) for k in (0, 9) for p in (1, 0.8) for m in (0, 0.02) for u in (0.2, 0.9)
]


@pytest.mark.parametrize("width", [70, 3000])
def test_a_row_depends_neither_on_its_neighbours_nor_on_threads(width):
    if not HAVE:
        pytest.skip("needs the C++ library")
    x = torch.randn(len(MANY), width, generator=torch.Generator().manual_seed(0)) * 3
    together = draw_tokens(x, width, MANY)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert draw_tokens(x, width, MANY) == together
        assert [draw_tokens(row[None], width, [d])[0] for row, d in zip(x, MANY, strict=True)] == together
        changed = [NOTHING if r % 3 else d for r, d in enumerate(MANY)]
        assert draw_tokens(x, width, changed)[::3] == together[::3]
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rows_without_numbers_give_nan_and_an_id(bad):
    if not HAVE:
        pytest.skip("needs the C++ library")
    x = torch.randn(len(MANY), 600, generator=torch.Generator().manual_seed(0))
    expected = draw_tokens(x, 600, MANY)
    x[1::2] = bad
    if bad != -math.inf:  # one is enough
        x[1::2, :597] = 0.0
    found = draw_tokens(x, 600, MANY)
    assert found[::2] == expected[::2]
    for token, log_prob, drawn in found[1::2]:
        assert 0 <= token < 600
        assert math.isnan(log_prob)
        assert math.isnan(drawn)


def test_what_it_cannot_read_is_left_to_others():
    x = torch.randn(2, 40)
    pair = [NOTHING, NOTHING]
    assert draw_tokens(x.double(), 40, pair) is None
    assert draw_tokens(x[:, ::2], 20, pair) is None
    assert draw_tokens(x[:0], 40, []) is None
    assert draw_tokens(x.requires_grad_(), 40, pair) is None


def test_every_row_has_a_draw():
    if not HAVE:
        pytest.skip("needs the C++ library")
    with pytest.raises(ValueError, match="size"):
        draw_tokens(torch.randn(3, 40), 40, [NOTHING] * 2)


LAST = 1 - 2.0**-53


@pytest.mark.parametrize("uniform", [LAST, 1 - 2.0**-52, 1 - 3e-14, 1 - 1e-10, 1e-300, 2.0**-53, 0.5])
@pytest.mark.parametrize("top_k", [0, 4095])
def test_no_token_of_probability_0_is_drawn(uniform, top_k):
    """Not at the ends of the distribution, nor among tokens that are next to impossible."""
    if not HAVE:
        pytest.skip("needs the C++ library")
    x = torch.full((1, 4096), -38.0)
    x[0, :512] = -math.inf
    x[0, 600] = 0.0
    x[0, 3000:] = -200.0
    ((token, _, drawn),) = draw_tokens(x, 4096, [Draw(1.0, top_k, 1.0, 0.0, uniform)])
    assert 512 <= token < 3000
    assert drawn > -40
    if uniform < 1 - 1e-12:
        assert token == 600 or uniform < 1e-15


def test_a_min_p_above_1_leaves_the_most_probable():
    if not HAVE:
        pytest.skip("needs the C++ library")
    x = torch.randn(2, 700, generator=torch.Generator().manual_seed(0))
    found = draw_tokens(x, 700, [Draw(1.0, 0, 1.0, 1.5, 0.999), Draw(0.7, 5, 1.0, 1e300, 0.999)])
    assert [token for token, *_ in found] == x.argmax(1).tolist()
    assert [drawn for *_, drawn in found] == [0.0, 0.0]


@pytest.mark.parametrize("gap", [0.0, 0.37, 1.2, 3.0, 5.1])
def test_flat_rows_of_a_large_vocabulary(gap):
    """Where every token adds to the sum, rounding must not: against float64."""
    if not HAVE:
        pytest.skip("needs the C++ library")
    width = 131_072
    x = torch.full((1, width), -gap)
    x[0, 5] = 0.0
    for d in (Draw(0.0, 0, 1, 0, 0.5), Draw(1.0, 0, 1, 0, 0.5), Draw(0.7, 0, 1, 0, 0.3), Draw(0.7, 0, 0.9, 0, 0.5)):
        ((token, log_prob, drawn),) = draw_tokens(x, width, [d])
        assert log_prob == pytest.approx(float(x.double().log_softmax(-1)[0, token]), abs=2e-6)
        if d.temperature and d.top_p == 1:
            scaled = (x.double() / d.temperature).log_softmax(-1)
            assert drawn == pytest.approx(float(scaled[0, token]), abs=2e-6)
