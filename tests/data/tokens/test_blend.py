from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nano3.config.presets import load_pretrain
from nano3.data.tokens.blend import Blend

WEIGHTS = st.dictionaries(
    st.sampled_from("abcdefgh"), st.integers(1, 999).map(lambda n: n / 10), min_size=1, max_size=8
)


def check_prefixes(blend: Blend, n: int) -> None:
    counts: Counter[str] = Counter()
    for i in range(n):
        name, earlier = blend.category(i)
        assert earlier == counts[name]
        counts[name] += 1
        for other, share in blend.shares.items():
            assert abs(counts[other] - (i + 1) * share) < 1


@settings(max_examples=30, deadline=None)
@given(WEIGHTS)
def test_every_prefix_is_within_one_sequence_of_every_share(weights):
    check_prefixes(Blend(weights), 700)


@pytest.mark.parametrize("preset", ["phase1", "phase2"])
def test_the_reports_blends_keep_their_shares_exactly(preset):
    blend = Blend(load_pretrain(preset).data.blend)
    check_prefixes(blend, 2500)
    counts = Counter(blend.category(i)[0] for i in range(10**12, 10**12 + 1000))
    weights = load_pretrain(preset).data.blend
    expected = {name: 1000 * weight / sum(weights.values()) for name, weight in weights.items() if weight}
    assert dict(counts) == pytest.approx(expected, abs=2)


@settings(max_examples=30, deadline=None)
@given(WEIGHTS, st.integers(0, 10**15))
def test_random_access_far_out_counts_on_where_the_period_repeats(weights, start):
    blend = Blend(weights)
    seen: dict[str, int] = {}
    for i in range(start, start + 50):
        name, earlier = blend.category(i)
        assert earlier == seen.get(name, earlier)
        assert abs(earlier + 1 - (i + 1) * blend.shares[name]) < 1
        seen[name] = earlier + 1


def test_shares_without_a_short_period_are_rounded_and_no_category_is_lost():
    blend = Blend({"a": 1 / 3, "b": 2 / 3 - 1e-9, "c": 1e-9})
    assert float(blend.shares["a"]) == pytest.approx(1 / 3, abs=2e-4)
    assert blend.shares["c"] > 0
    check_prefixes(blend, 500)


def test_categories_without_a_share_are_left_out():
    assert Blend({"a": 1.0, "b": 0.0}).names == ["a"]


@pytest.mark.parametrize("weights", [{}, {"a": 0.0}, {"a": -1.0}, {"a": float("nan")}, {"a": float("inf")}])
def test_impossible_weights_are_errors(weights):
    with pytest.raises(ValueError, match=r"data\.blend"):
        Blend(weights)
