"""Preference files of four layouts, and rows that are none."""

import json

import pytest

from nano3.config.errors import UserError
from nano3.data.preferences.layouts import pair_of, ranking_of, read_pairs
from nano3.data.preferences.pair import in_both_orders, split_pairs

PLAIN = {"prompt": "Hi", "response_1": "a", "response_2": "b", "score_1": 4, "score_2": 2, "ranking": 2}
HELPSTEER3 = {
    "domain": "general", "language": "english",
    "context": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"},
                {"role": "user", "content": "Bye"}],
    "response1": "a", "response2": "b", "overall_preference": -2,
    "individual_preference": [
        {"score": -3, "reasoning": "far", "feedback1": "x", "feedback2": "y"},
        {"score": -2, "reasoning": "Response 1 is better than Response 2.", "feedback1": "x", "feedback2": "y"},
    ],
}  # fmt: skip


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return str(path)


def test_plain_rows_are_read_as_they_are_written(tmp_path):
    (pair,) = read_pairs(write(tmp_path / "p.jsonl", PLAIN))
    assert pair.row() == PLAIN | {"prompt": [{"role": "user", "content": "Hi"}]}
    assert pair_of(pair.row()) == pair


def test_helpsteer3(tmp_path):
    (pair,) = read_pairs(write(tmp_path / "p.jsonl", HELPSTEER3))
    assert [message["content"] for message in pair.prompt] == ["Hi", "Yes?", "Bye"]
    assert (pair.response_1, pair.response_2) == ("a", "b")
    assert (pair.score_1, pair.score_2, pair.ranking) == (4, 2, 2)
    assert pair.analysis == "Response 1 is better than Response 2."
    assert pair.swapped().analysis == "Response 2 is better than Response 1."
    for empty in ([], None):
        assert pair_of(HELPSTEER3 | {"individual_preference": empty}).analysis == ""


def test_helpsteer2(tmp_path):
    turns = "Hi\n<extra_id_1>Assistant\nYes?\n<extra_id_1>User\nBye"
    preferred = {"split": "train", "prompt": turns, "response_1": "a", "response_2": "b", "preference_strength": 3}
    rated = [{"prompt": "Hi", "response": text, "helpfulness": score} for text, score in (("a", 4), ("b", 2))]
    first, second = read_pairs(write(tmp_path / "p.jsonl", preferred, *rated))
    assert [(message["role"], message["content"]) for message in first.prompt] == [
        ("user", "Hi"), ("assistant", "Yes?"), ("user", "Bye"),
    ]  # fmt: skip
    assert (first.score_1, first.score_2, first.ranking) == (1, 5, 6)
    assert (second.response_1, second.score_1, second.score_2, second.ranking) == ("a", 5, 3, 2)


def test_rankings_of_preferences_are_symmetric():
    assert [ranking_of(p) for p in range(-3, 4)] == [1, 2, 3, 3.5, 4, 5, 6]
    for preference in range(-3, 4):
        one, other = (pair_of(HELPSTEER3 | {"overall_preference": p}) for p in (preference, -preference))
        assert one.ranking + other.ranking == 7
        assert (one.score_1, one.score_2) == (other.score_2, other.score_1)
        assert (one.score_1 > one.score_2) == (preference < 0)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("{", "not a JSON object"), ([1], "not a JSON object"), ({"a": 1}, "no preference"),
        (PLAIN | {"score_1": 6}, "score_1 is 6; it must be a number from 1 to 5"),
        (PLAIN | {"ranking": True}, "ranking is True"), (PLAIN | {"ranking": "2"}, "ranking is '2'"),
        (PLAIN | {"prompt": " "}, "prompt is missing or empty"), (PLAIN | {"prompt": []}, "prompt is missing or empty"),
        (PLAIN | {"prompt": [{"content": "x"}]}, "prompt: messages"), (PLAIN | {"prompt": 3}, "prompt: messages"),
        (PLAIN | {"response_2": None}, "response_2 is missing or no text"),
        (HELPSTEER3 | {"overall_preference": -4}, "overall_preference is -4"),
        (HELPSTEER3 | {"overall_preference": 0.5}, "whole number"),
        (HELPSTEER3 | {"individual_preference": "x"}, "individual_preference is no list"),
        ({"prompt": "Hi", "response": "a", "helpfulness": 3}, "does not rate another response"),
        ({"prompt": "Hi\n<extra_id_1>Robot\nx", "response_1": "", "response_2": "", "preference_strength": 0}, "Robot"),
    ],
)  # fmt: skip
def test_bad_rows_are_named_and_left_out(tmp_path, row, why):
    path = write(tmp_path / "prefs.jsonl", PLAIN, row, PLAIN)
    refused = []
    assert len(list(read_pairs(path, lambda name, reason: refused.append((name, reason))))) == 2
    ((name, reason),) = refused
    assert name.endswith("prefs.jsonl:2")
    assert why in reason
    assert "\n" not in reason
    with pytest.raises(UserError, match=r"prefs\.jsonl:2: "):
        list(read_pairs(path))


def test_a_rated_row_without_a_partner_does_not_take_the_next_prompts(tmp_path):
    def rated(prompt, text):
        return {"prompt": prompt, "response": text, "helpfulness": 1}

    refused = []
    path = write(tmp_path / "p.jsonl", rated("x", "a"), rated("y", "b"), rated("y", "c"))
    (pair,) = read_pairs(path, lambda name, reason: refused.append(name))
    assert (pair.response_1, pair.response_2) == ("b", "c")
    assert [name.rpartition(":")[2] for name in refused] == ["1"]


def test_both_orders_of_a_prompt_are_on_one_side():
    pairs = in_both_orders([pair_of(PLAIN | {"prompt": f"prompt {i // 2}", "response_1": str(i)}) for i in range(200)])
    assert len({pair.id for pair in pairs}) == len(pairs) == 400
    train, heldout = split_pairs(pairs, 0.2)
    assert len(train) + len(heldout) == 400
    assert 20 < len(heldout) < 140
    prompts = [{pair.prompt[0]["content"] for pair in side} for side in (train, heldout)]
    assert not prompts[0] & prompts[1]
    for pair in pairs:
        assert pair.swapped().swapped() == pair
