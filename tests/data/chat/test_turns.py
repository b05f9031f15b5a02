"""One row a user turn, and reasoning control."""

from collections import Counter

import pytest

from nano3.config.sft import ReasoningConfig
from nano3.data.chat.conversation import read_conversation
from nano3.data.chat.turns import KEPT, STRIPPED, TRUNCATED, ReasoningControl, user_turns


def talk(*answers, name="x:1"):
    """A conversation of these (reasoning, content)."""
    messages = []
    for number, (reasoning, content) in enumerate(answers):
        messages += [
            {"role": "user", "content": f"question {number}"},
            {"role": "assistant", "content": content} | ({"reasoning_content": reasoning} if reasoning else {}),
        ]
    return read_conversation({"messages": messages}, name)


def reasoning_of(turn):
    return [m.get("reasoning_content") for m in turn.conversation.messages if m["role"] == "assistant"]


def test_a_conversation_with_reasoning_is_a_row_each_user_turn():
    turns = list(user_turns(talk(("a", "1"), ("", "2"), ("c", "3"))))
    assert [(turn.number, len(turn.conversation.messages), turn.last_only) for turn in turns] == [
        (0, 2, True),
        (1, 4, True),
        (2, 6, True),
    ]


@pytest.mark.parametrize("last", ["", "thought"])
def test_a_conversation_that_reads_the_same_at_every_turn_is_one_row(last):
    (turn,) = user_turns(talk(("", "1"), ("", "2"), (last, "3")))
    assert (len(turn.conversation.messages), turn.last_only) == (6, False)


def control(tokenizer, seed=1, **settings):
    return ReasoningControl(ReasoningConfig(**settings), tokenizer, seed)


def test_a_tenth_loses_its_reasoning_and_a_few_keep_its_beginning(tokenizer):
    thought, budgets = "one two three four five six seven", [3, 5]
    made, counts = control(tokenizer, budgets=budgets), Counter()
    ids = tokenizer.encode(thought)
    for number in range(2000):
        (turn,) = user_turns(talk((thought, "the answer"), name=f"x:{number}"))
        row = made.apply(turn)
        counts[row.reasoning] += 1
        (left,) = reasoning_of(row)
        assert row.conversation.messages[1]["content"] == "the answer"
        if row.reasoning == KEPT:
            assert row.conversation == turn.conversation
        elif row.reasoning == STRIPPED:
            assert left is None
            assert "reasoning" not in row.conversation.messages[1]
        else:
            assert left in [tokenizer.decode(ids[:budget]) for budget in budgets]
    assert counts.total() == 2000
    assert 150 < counts[STRIPPED] < 250
    assert 35 < counts[TRUNCATED] < 90


def test_which_rows_these_are_depends_on_seed_and_row_alone(tokenizer):
    turns = [next(user_turns(talk(("a b c d e f", "x"), name=f"x:{i}"))) for i in range(300)]
    found = [[control(tokenizer, seed).apply(turn).reasoning for turn in turns] for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]
    backwards = [control(tokenizer, 1).apply(turn).reasoning for turn in reversed(turns)]
    assert backwards[::-1] == found[0]


def test_only_the_answer_of_the_row_is_changed_and_without_reasoning_nothing_is(tokenizer):
    always = control(tokenizer, strip_fraction=1.0, truncate_fraction=0.0)
    rows = [always.apply(turn) for turn in user_turns(talk(("a", "1"), ("b", "2"), ("", "3")))]
    assert [reasoning_of(row) for row in rows] == [[None], ["a", None], ["a", "b", None]]
    assert [row.reasoning for row in rows] == [STRIPPED, STRIPPED, ""]


def test_a_reasoning_shorter_than_every_budget_stays(tokenizer):
    always = control(tokenizer, strip_fraction=0.0, truncate_fraction=1.0, budgets=[50, 60])
    (row,) = map(always.apply, user_turns(talk(("short", "1"))))
    assert (row.reasoning, reasoning_of(row)) == (KEPT, ["short"])


def test_a_cut_inside_a_character_leaves_no_half_of_it(tokenizer):
    text = "漢字"
    assert len(tokenizer.encode(text * 9)) > 2 * len(text * 9)
    for budget in range(12):
        always = control(tokenizer, strip_fraction=0.0, truncate_fraction=1.0, budgets=[budget])
        (row,) = map(always.apply, user_turns(talk((text * 9, "1"))))
        (left,) = reasoning_of(row)
        assert (text * 9).startswith(left or "")
        assert row.reasoning == TRUNCATED


def test_settings_that_contradict_each_other_are_refused():
    for settings in ({"strip_fraction": 0.6, "truncate_fraction": 0.6}, {"budgets": []}, {"budgets": [-1]}):
        with pytest.raises(ValueError, match="reasoning"):
            ReasoningConfig(**settings)
