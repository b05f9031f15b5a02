"""GenRM reward, circular comparison and length control: values of golden/rl.json, and what holds for any group."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nano3.rl.circular import base_rewards, broken_tie, pairs
from nano3.rl.genrm import Judgement, genrm_reward, parse_judgement
from nano3.rl.length_control import control

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "rl.json").read_text())
TRIPLES = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 6))


@pytest.mark.parametrize("case", GOLDEN["genrm_reward_c1_10_c2_1"], ids=str)
def test_golden_genrm(case):
    assert genrm_reward(case["predicted"], case["truth"], case["format_ok"], c1=10, c2=1) == case["expected"]


def test_golden_circular():
    case = GOLDEN["circular_base_reward"]
    assert [list(pair) for pair in pairs(case["n"])] == case["pairs"]
    assert base_rewards(case["n"], case["judgements"]) == case["expected"]


@pytest.mark.parametrize("case", GOLDEN["group_relative_length_control"], ids=lambda case: str(case["base"]))
def test_golden_length_control(case):
    found = control(case["base"], case["think"], case["answer"])
    assert found.adjustment == pytest.approx(case["adjustment"])
    assert found.threshold == pytest.approx(case["threshold"])
    assert found.reward == pytest.approx(case["reward"])


@given(TRIPLES, TRIPLES)
def test_the_best_judgement_is_the_truth_and_an_unread_one_the_worst(predicted, truth):
    assert genrm_reward(truth, truth, True) == 0
    assert genrm_reward(predicted, truth, True) == (0 if predicted == truth else pytest.approx(-_far(predicted, truth)))
    assert genrm_reward(None, truth, False) <= genrm_reward(predicted, truth, False)
    assert genrm_reward(Judgement(*predicted).swapped(), Judgement(*truth).swapped(), True) == genrm_reward(
        predicted, truth, True
    )


def _far(one, other):
    return sum(abs(a - b) for a, b in zip(one, other, strict=True))


@given(TRIPLES)
def test_a_judgement_is_read_as_it_was_written_and_swapping_twice_changes_nothing(triple):
    text = json.dumps({"score_1": triple[0], "score_2": triple[1], "ranking": triple[2]})
    assert parse_judgement(f" {text}\n") == triple
    judgement = Judgement(*triple)
    assert judgement.swapped().swapped() == judgement
    first, second = broken_tie(judgement)
    assert broken_tie(judgement.swapped()) == (second, first)


@pytest.mark.parametrize(
    "wrong",
    [
        "", "3", "[3, 3, 3]", '{"score_1": 3, "score_2": 3}', '{"score_1": 3, "score_2": 3, "ranking": 7}',
        '{"score_1": 0, "score_2": 3, "ranking": 3}', '{"score_1": 3.0, "score_2": 3, "ranking": 3}',
        '{"score_1": true, "score_2": 3, "ranking": 3}', '{"score_1": 3, "score_2": 3, "ranking": 3, "why": ""}',
        '{"score_1": 3, "score_1": 4, "score_2": 3, "ranking": 3}', '{"score_1": 3, "score_2": 3, "ranking": 3} yes',
        "[" * 100_000, '{"score_1": ' + "1" * 5000 + "}",
    ],
)  # fmt: skip
def test_anything_else_is_no_judgement(wrong):
    assert parse_judgement(wrong) is None


@given(st.integers(2, 20))
def test_each_response_is_judged_once_in_each_place(n):
    found = pairs(n)
    assert len(found) == n
    for place in (0, 1):
        assert sorted(pair[place] for pair in found) == list(range(n))
    assert all(first != second for first, second in found)


def test_ties_are_broken_and_other_numbers_of_judgements_refused():
    assert base_rewards(2, [(3, 3, 1), (3, 4, 6)]) == [(5.5 + 4) / 2, (0.5 + 3) / 2]
    with pytest.raises(ValueError, match="1 judgements of 3 responses"):
        base_rewards(3, [(1, 1, 1)])
    with pytest.raises(ValueError, match="2 or more"):
        pairs(1)


@given(st.data(), st.integers(1, 8))
def test_adjustments_sum_to_0_and_equal_lengths_leave_the_order(data, n):
    base = data.draw(st.lists(st.floats(1, 5), min_size=n, max_size=n))
    think, answer = (data.draw(st.lists(st.integers(0, 1000), min_size=n, max_size=n)) for _ in range(2))
    found = control(base, think, answer)
    assert sum(found.adjustment) == pytest.approx(0, abs=1e-9)
    assert sum(bonus > 0 for bonus in found.think_bonus) <= 1
    for i, reward in enumerate(found.reward):
        parts = base[i] + found.think_adjustment[i] + found.answer_adjustment[i]
        assert reward == pytest.approx(parts + found.think_bonus[i] + found.answer_bonus[i], abs=1e-6)
    plain = control(base, [5] * n, [7] * n, think_bonus=0, answer_bonus=0)
    assert plain.reward == pytest.approx(base, abs=1e-6)


def test_rounding_tells_no_responses_apart():
    """The longer the thinking the shorter the answer: the adjustments cancel, up to the last bits of a float."""
    found = control([0.1] * 3, [0, 7, 5], [7, 0, 2], think_bonus=0, answer_bonus=0)
    assert len(set(found.reward)) == 1


@given(st.lists(st.integers(0, 100), min_size=2, max_size=8, unique=True))
def test_of_equal_responses_the_shorter_one_is_worth_more(think):
    found = control([3.0] * len(think), think, think)
    order = sorted(range(len(think)), key=lambda i: think[i])
    assert [found.reward[i] for i in order] == sorted(found.reward, reverse=True)


def test_refuses_parts_of_different_sizes():
    for wrong in (([], [], []), ([1.0], [1, 2], [1])):
        with pytest.raises(ValueError, match="one of each a response"):
            control(*wrong)
