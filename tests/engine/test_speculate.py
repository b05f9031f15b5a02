from hypothesis import given
from hypothesis import strategies as st

from nano3.engine.speculate import NgramIndex


def brute_force(tokens, most):
    for n in (3, 2):
        for end in range(len(tokens) - 1, n - 1, -1):
            if len(tokens) > n and tokens[end - n : end] == tokens[-n:]:
                return tuple(tokens[end : end + most])
    return ()


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 5), st.integers(1, 7))
def test_proposes_what_followed_the_latest_same_ending(tokens, most, step):
    index = NgramIndex()
    for length in range(0, len(tokens) + 1, step):
        assert index.draft(tokens[:length], most) == brute_force(tokens[:length], most)


def test_nothing_to_propose():
    assert NgramIndex().draft([1, 2, 1, 2], 0) == ()
    assert NgramIndex().draft([1, 2, 3, 4], 3) == ()
