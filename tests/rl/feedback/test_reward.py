"""Rewards of judged responses: their terms, and how they are explained."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nano3.data.tokens.vocabulary import CHAT_TOKENS
from nano3.rl.circular import base_rewards
from nano3.rl.environments.base import Reward, Task, user
from nano3.rl.feedback.comparison import Verdict
from nano3.rl.feedback.groups import JudgedGroup, Responses
from nano3.rl.feedback.lengths import Lengths, part_lengths
from nano3.rl.feedback.reward import OFF, TERMS, LengthControl, explain, explain_lines, feedback_rewards, numbered
from nano3.rl.genrm import Judgement

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "rl.json").read_text("utf-8"))
TASK = Task("t", user("q"))
JUDGEMENTS = st.builds(Judgement, st.integers(1, 5), st.integers(1, 5), st.integers(1, 6))
GROUPS = st.integers(2, 8).flatmap(
    lambda n: st.tuples(
        st.lists(st.one_of(st.none(), JUDGEMENTS), min_size=n, max_size=n),
        st.lists(st.builds(Lengths, st.integers(0, 900), st.integers(0, 90)), min_size=n, max_size=n),
    )
)


def judged(judgements, answers=()):
    verdicts = [Verdict(None if each is None else Judgement(*each), "said") for each in judgements]
    return JudgedGroup(Responses("e", TASK, answers or [str(i) for i in range(len(verdicts))]), verdicts)


def test_golden_values_of_the_whole_reward():
    case = GOLDEN["circular_base_reward"]
    group = judged(case["judgements"])
    assert group.base == case["expected"]
    found = feedback_rewards(group, [Lengths(100, 50), Lengths(200, 50), Lengths(300, 100), Lengths(500, 150)])
    # Lengths of a golden case of length control: adjustments do not depend on the base rewards.
    adjustment = GOLDEN["group_relative_length_control"][0]["adjustment"]
    threshold = 4.0 + 0.4 * 0.5  # 80 % of the way through 2.25, 3.25, 4.0, 4.5
    assert [each.parts["threshold"] for each in found] == pytest.approx([threshold] * 4)
    assert [each.value for each in found] == pytest.approx(
        [base + moved for base, moved in zip(case["expected"], adjustment, strict=True)]
    )
    assert [each.passed for each in found] == [True, False, False, True]


@given(GROUPS)
def test_every_term_is_there_and_survives_a_file(drawn):
    judgements, lengths = drawn
    rewards = feedback_rewards(judged(judgements), lengths)
    for each in rewards:
        assert each.value == pytest.approx(sum(each.parts[term] for term in TERMS), abs=1e-6)
    for part in ("think_adjustment", "answer_adjustment"):
        assert sum(each.parts[part] for each in rewards) == pytest.approx(0, abs=1e-9)
    saved = [Reward(each.value, each.passed, json.loads(json.dumps(each.parts))) for each in rewards]
    told = explain(saved)
    assert told == json.loads(json.dumps(told))
    scores = [response["scores"] for response in told["responses"]]
    assert [sum(pair) / 2 for pair in scores] == [each.parts["base"] for each in rewards]
    assert [each["read"] for each in told["comparisons"]] == [each is not None for each in judgements]
    assert len(explain_lines(told)) <= 2 * len(rewards) + 3


@given(GROUPS)
def test_without_length_control_the_reward_is_the_base_and_equal_lengths_keep_its_order(drawn):
    judgements, lengths = drawn
    group = judged(judgements)
    used = group.judgements
    assert [each.value for each in feedback_rewards(group, lengths, OFF)] == base_rewards(len(used), used)
    if None not in judgements:
        assert used == judgements
    alike = feedback_rewards(group, [Lengths(7, 3)] * len(used), LengthControl(think_bonus=0, answer_bonus=0))
    assert [each.value for each in alike] == group.base


def test_equal_lines_are_one_with_its_numbers():
    alike = explain_lines(explain(feedback_rewards(judged([(3, 3, 3.5)] * 16), [Lengths(7, 3)] * 16)))
    assert alike[:2] == [
        "comparisons of each answer with the next (scores, ranking)",
        "  0 to 15: 3 and 3, ranking 3.5",
    ]
    assert [line.partition(":")[0] for line in alike[2:]] == [
        "rewards = base + thinking + answer + bonuses", "  0 to 15", "bonuses need a base of 3 or more",
    ]  # fmt: skip
    assert numbered(["a", "b", "a", "a", "a", "c", "c"]) == ["  0, 2 to 4: a", "  1: b", "  5, 6: c"]


def test_no_answer_is_no_short_answer():
    """As of a response that was cut off in its reasoning."""
    verdicts = [(5, 5, 3.5), (5, 1, 1), (1, 5, 6)]
    found = feedback_rewards(judged(verdicts, ["3", "so, 3", " \n"]), [Lengths(9, 1), Lengths(9, 3), Lengths(60, 0)])
    assert [each.parts["answer_bonus"] for each in found] == [0.5, 0, 0]
    assert [each.parts["answer_adjustment"] for each in found] == pytest.approx([5 / 18, -1 / 18, -4 / 18])
    assert [each.parts["answer_tokens"] for each in found] == [1, 3, 0]
    assert "no answer -0.222" in "\n".join(explain_lines(explain(found)))


@pytest.mark.parametrize("answers", [["", "3", "3"], ["", "", ""]])
def test_a_response_without_an_answer_has_no_bonus_for_a_short_one(answers):
    lengths = [Lengths(9 - i, len(answer)) for i, answer in enumerate(answers)]
    found = feedback_rewards(judged([(5, 5, 3.5)] * 3, answers), lengths)
    assert [each.parts["answer_bonus"] for each in found] == [0, 0.5 * bool(answers[1]), 0]


def test_responses_that_are_equal_in_all_have_equal_rewards():
    found = feedback_rewards(judged([(5, 5, 3.5)] * 4), [Lengths(9, 1)] * 4)
    assert [each.value for each in found] == [5] * 4
    # Of equally good ones that differ in length the shortest still has its bonus.
    found = feedback_rewards(judged([(5, 5, 3.5)] * 2), [Lengths(9, 1), Lengths(8, 1)])
    assert [each.parts["think_bonus"] for each in found] == [0, 0.5]


def test_a_response_that_spoils_the_judgements_gains_nothing():
    # Neither judgement of 4 is read. The others have what their readable ones say.
    assert judged([(4, 4, 3.5), (4, 1, 1), (2, 3, 4), None, None, (4, 5, 4)]).base == [4.5, 4, 1.5, 3, 1, 4]


def test_the_explanation_shows_ties_unread_judgements_and_bonuses():
    rewards = feedback_rewards(judged([(5, 2, 1), (3, 3, 1), None]), [Lengths(9, 2), Lengths(4, 2), Lengths(6, 1)])
    assert explain_lines(explain(rewards)) == [
        "comparisons of each answer with the next (scores, ranking)",
        "  0: 5 and 2, ranking 1",
        "  1: 3 and 3, ranking 1; a tie, so 5.5 and 0.5",
        "  2: not read, counts as 0.5 and 5, ranking 3.5",
        "rewards = base + thinking + answer + bonuses",
        "  0: (5 + 5) / 2 = 5; thinking of 9 tokens -0.267; answer of 2 tokens -0.167; bonuses +0 +0; reward 4.567",
        "  1: (5.5 + 2) / 2 = 3.75; thinking of 4 tokens +0.233; answer of 2 tokens -0.167; bonuses +0 +0; "
        "reward 3.817",
        "  2: (0.5 + 0.5) / 2 = 0.5; thinking of 6 tokens +0.033; answer of 1 tokens +0.333; bonuses +0 +0; "
        "reward 0.867",
        "bonuses need a base of 4.5 or more",
    ]
    with pytest.raises(ValueError, match="no part 'base'"):
        explain([Reward(1.0), Reward(0.0)])


def test_lengths_are_counted_in_tokens(tokenizer):
    def lengths(text, thinking_open=True):
        return part_lengths(tokenizer.encode(text, special=True), thinking_open, tokenizer)

    think, answer = "the quick brown fox", "lazy dog"
    n, m = (len(tokenizer.encode(text)) for text in (think, answer))
    end = CHAT_TOKENS[1]
    assert lengths(f"{think}</think>{answer}{end}") == (n + 1, m)
    assert lengths(f"<think>{think}</think>{answer}{end}", thinking_open=False) == (n + 2, m)
    assert lengths(f"{answer}{end}", thinking_open=False) == (0, m)
    assert lengths(think) == (n, 0)
    assert lengths(f"{think}</think>{end}") == (n + 1, 0)
    assert lengths("") == (0, 0)
