"""The scores of a judge against values worked by hand."""

import pytest

from nano3.rl.genrm import Judgement
from nano3.stages.genrm.figures import Judged, best_constant, best_order, mean_scores, score

TRUTHS = [Judgement(*row) for row in ((5, 2, 1), (4, 1, 1), (1, 5, 6), (2, 2, 3.5))]
SAID = [Judgement(5, 1, 1), Judgement(2, 4, 5), None, Judgement(2, 3, 4)]
JUDGED = [Judged(truth, said) for truth, said in zip(TRUTHS, SAID, strict=True)]


def by_name(scoring):
    return {measure.name: measure for measure in scoring.measures}


def test_the_best_constant_is_the_least_wrong_one_in_whole_numbers():
    # Scores 5 4 1 2: 2, 3 and 4 are off by 6 in all; 2 1 5 2: 2 is off by 4; rankings 1 1 6 3.5: 1, 2 and 3 by 7.5.
    assert best_constant(TRUTHS) == (2, 2, 1)
    assert best_constant([Judgement(5, 5, 6)] * 3) == (5, 5, 6)
    assert best_constant([Judgement(2.5, 4, 3.5)]) == (2, 4, 3)


def test_the_best_order_is_that_of_the_response_that_is_better_more_often():
    assert best_order(TRUTHS) == -1
    assert best_order([truth.swapped() for truth in TRUTHS]) == 1


def test_each_figure_beside_the_constants():
    found = by_name(score({"warm_start": JUDGED}))
    # Errors of both scores: (0 + 1) / 2, (2 + 3) / 2, as far as can be (4 + 4) / 2, (0 + 1) / 2.
    assert found["score_error"].stages["warm_start"].value == pytest.approx((0.5 + 2.5 + 4 + 0.5) / 4)
    assert found["score_error"].constant == pytest.approx((1.5 + 1.5 + 2 + 0) / 4)
    assert found["ranking_error"].stages["warm_start"].value == pytest.approx((0 + 4 + 5 + 0.5) / 4)
    assert found["ranking_error"].constant == pytest.approx((0 + 0 + 5 + 2.5) / 4)
    assert found["format_violations"].stages["warm_start"].value == 0.25
    assert found["format_violations"].constant == 0
    # Of three pairs of different score the first is judged in the right order; the first response is better in two.
    assert found["order_agreement"].stages["warm_start"].value == pytest.approx(1 / 3)
    assert found["order_agreement"].constant == pytest.approx(2 / 3)
    assert found["order_agreement"].pairs == 3
    # Equation 1: -1, -9, -10 - 8 - 5 and -1.5.
    assert found["reward"].stages["warm_start"].value == pytest.approx(-(1 + 9 + 23 + 1.5) / 4)
    over = found["score_error"].stages["warm_start"].over_constant
    assert over.value == pytest.approx(1.875 - 1.25)
    assert over.low <= over.value <= over.high
    assert found["score_error"].change is None


def test_the_weights_of_equation_1_are_those_of_the_run():
    assert by_name(score({"grpo": JUDGED}, c1=0, c2=2))["reward"].stages["grpo"].value == pytest.approx(
        -(1 + 13 + 18 + 2) / 4
    )


@pytest.mark.parametrize("better", [True, False])
def test_a_difference_counts_where_its_interval_leaves_out_zero(better):
    truth = Judgement(5, 1, 1)
    far, near = Judged(truth, Judgement(3, 2, 3)), Judged(truth, Judgement(5, 1, 2))
    before, after = ([far] * 60 + [near] * 20, [near] * 80)
    found = by_name(score({"warm_start": before if better else after, "grpo": after if better else before}))
    word = "better" if better else "worse"
    for name in ("score_error", "ranking_error", "reward"):
        change = found[name].change
        assert change.verdict == word, name
        assert change.low <= change.value <= change.high
    # A normal approximation of the paired difference: 1.5 of 60 pairs and 0 of 20.
    change = found["score_error"].change
    assert abs(change.value) == pytest.approx(1.125)
    assert change.high - change.low == pytest.approx(2 * 1.96 * (1.5**2 * 0.75 * 0.25 / 80) ** 0.5, rel=0.1)
    assert found["format_violations"].change.verdict == "no clear difference"
    assert found["format_violations"].stages["grpo"].high > 0.04


def test_a_judge_is_compared_with_the_constant_pair_by_pair():
    # It is right of every pair; the best constant of half of them.
    truths = [Judgement(5, 1, 1), Judgement(1, 5, 6)] * 20
    found = by_name(score({"grpo": [Judged(truth, truth) for truth in truths]}))
    for name in ("order_agreement", "score_error", "ranking_error", "reward"):
        assert found[name].stages["grpo"].over_constant.verdict == "better", name
    assert found["order_agreement"].constant == 0.5
    assert found["order_agreement"].stages["grpo"].low > 0.9


def test_pairs_of_equal_scores_have_no_order_to_agree_with():
    tie = Judged(Judgement(2, 2, 3.5), Judgement(3, 2, 3))
    assert "order_agreement" not in by_name(score({"grpo": [tie] * 3}))


def test_mean_scores_by_true_score():
    assert mean_scores(JUDGED) == {1: (4, 1), 2: (2, 3), 4: (2, 1), 5: (5, 1)}
