"""The random order of rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nano3.data.tokens.permutation import permuted


@given(count=st.integers(1, 300), key=st.tuples(st.integers(0, 5), st.text(max_size=3)))
def test_every_place_comes_exactly_once(count, key):
    assert sorted(permuted(place, count, key) for place in range(count)) == list(range(count))


def test_neighbours_are_scattered_and_keys_differ():
    order = np.array([permuted(place, 5000, (0,)) for place in range(5000)])
    assert abs(np.corrcoef(np.arange(5000), order)[0, 1]) < 0.05
    assert np.abs(np.diff(order)).mean() > 1000
    assert not np.array_equal(order[:50], [permuted(place, 5000, (1,)) for place in range(50)])


def test_huge_ranges_stay_in_range():
    count = 10**15 + 37
    assert all(0 <= permuted(place, count, (7,)) < count for place in range(0, count, count // 50))
