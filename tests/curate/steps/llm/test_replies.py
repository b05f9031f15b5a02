"""What must not change in a translation, and other parts of replies."""

import pytest

from nano3.curate.ask.answers import DropError
from nano3.curate.steps.llm.replies import (
    check_unchanged,
    check_whole,
    code_blocks,
    is_english,
    json_object,
    numbers,
    one_block,
    turns,
    without_preamble,
)


@pytest.mark.parametrize(
    ("source", "reply"),
    [
        ("Im Jahr 1990 kostete es 1.234,50 Euro.", "In 1990 it cost 1,234.50 euros."),
        ("1 234 567 personnes, 3,5 %", "1,234,567 people, 3.5%"),
        ("一九九〇 前 3 天 和 ２５ 个", "3 days before 1990... and 25 of them".replace("1990...", "it")),
        ("三つの例", "3 examples"),
        ("2011年3月11日", "March 11, 2011"),
        ("Am 11.03.2011 um 5 Uhr", "On March 11, 2011 at 5"),
        ("Es sind 1,5 %", "It is 1.50%"),
        ("Siehe https://example.org/a?b=1.", "See https://example.org/a?b=1."),
        ("Führe `pip install x` aus: `a = 1`", "First `a = 1`, then run `pip install x`"),
        ("Ver `x == 10` en www.example.org", "See `x == 10` at www.example.org"),
    ],
)
def test_translations_that_keep_everything_pass(source, reply):
    check_unchanged(source, reply)


@pytest.mark.parametrize(
    ("source", "reply", "reason"),
    [
        ("Im Jahr 1990", "In 1991", "numbers changed"),
        ("12 Tiere und 12 Häuser", "12 animals and houses", "numbers changed"),
        ("Tiere", "In 2023, animals", "numbers changed"),
        ("3,5 Meter", "35,5 metres", "numbers changed"),
        ("3,5 Meter", "35 metres", "numbers changed"),
        ("1.250 Zeilen", "12,50 lines", "numbers changed"),
        ("Am 11.03.2011", "On April 12, 2011", "numbers changed"),
        ("2011年3月11日", "March 12, 2011", "numbers changed"),
        ("3 Tage", "two days", "numbers changed"),
        ("https://example.org/a", "https://example.org/b", "addresses changed"),
        ("https://example.org/a", "the site", "addresses changed"),
        ("Führe `make` aus", "Run `make all`", "code changed"),
        ("Führe `make` aus", "Run make", "code changed"),
        ("Führe make aus", "Run `make`", "code changed"),
    ],
)
def test_translations_that_change_something_are_told(source, reply, reason):
    with pytest.raises(DropError, match=reason):
        check_unchanged(source, reply)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1.234,5 and 1,234.50 and 1 234,5", {"1234.5": 3}),
        ("12 345, 12.345, 12,345, 12'345 and 1 2", {"12345": 4, "1": 1, "2": 1}),
        ("1.234.567 and 1,234,567.0", {"1234567": 2}),
        ("0,125 and 0.125 and 0.5", {"0.125": 2, "0.5": 1}),
        ("v1.2, 3. 1.2.3", {"1.2": 1, "3": 2, "1": 1, "2": 1}),
        ("11.03.2011, 007", {"11": 1, "3": 1, "2011": 1, "7": 1}),
    ],
)
def test_numbers_are_the_same_in_every_spelling(text, found):
    assert numbers(text) == found


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        ('```json\n{"a": {"b": 2}}\n```', {"a": {"b": 2}}),
        ('I think so.\n{"a": "}"}', {"a": "}"}),
    ],
)
def test_a_json_object_is_found(reply, value):
    assert json_object(reply) == value


@pytest.mark.parametrize("reply", ["", "yes", "{a}", "[1, 2]", '{"a": 1'])
def test_what_is_no_object_is_told(reply):
    with pytest.raises(DropError, match="without a JSON object"):
        json_object(reply)


def test_blocks_keep_their_lines():
    assert code_blocks("a\n```Python\n  x\n\n```\nb\n````\n```\n````") == [("python", "  x\n\n"), ("", "```\n")]
    assert one_block("```\nx = 1\n```", ("python",)) == "x = 1\n"


def test_turns_may_be_numbered_and_hold_other_headings():
    found = turns("### Question 1:\nA?\n## Answer 1\nB\n\n### Why\nC\n", ("Question", "Answer"))
    assert found == [("Question", "A?"), ("Answer", "B\n\n### Why\nC")]


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("Here is the text:\n\nCats sleep.", "Cats sleep."),
        ("Sure! Here's the translation:\nCats sleep.", "Cats sleep."),
        ("Here is where cats sleep: on sofas.", "Here is where cats sleep: on sofas."),
        (
            "Below are the half-lives of three isotopes:\n\nA: 3 h",
            "Below are the half-lives of three isotopes:\n\nA: 3 h",
        ),
        ("Cats sleep.\n\nHere is why:\n\nx", "Cats sleep.\n\nHere is why:\n\nx"),
        ("```\na\n```", "a"),
        ("Here it is:\n\n```markdown\na\n\nb\n```\n", "a\n\nb"),
        ("```markdown\na\n\n```c\nx\n```\n\nb\n```", "a\n\n```c\nx\n```\n\nb"),
        ("a\n```\nb\n```", "a\n```\nb\n```"),
        ("```\na\n```\nb\n```\nc\n```", "```\na\n```\nb\n```\nc\n```"),
        ("```python\na\n```", "```python\na\n```"),
    ],
)
def test_an_announcement_and_a_fence_around_everything_are_taken_off(reply, text):
    assert without_preamble(reply) == text


def test_languages_are_told_outside_code():
    german = "Die Katze schläft auf dem Sofa und träumt von Mäusen, die über die Wiese laufen. " * 4
    english = "The cat sleeps on the sofa and dreams of mice that run across the meadow in summer. " * 4
    assert is_english(english)
    assert not is_english(german)
    assert is_english("kurz")
    assert is_english(f"{english}\n```\n{german}\n```")


@pytest.mark.parametrize(
    "code",
    [
        "# done\n", "#include <vector>\n// TODO\n", "x = 1\n# ...\n", "x = 1\n    # ... (rest of the code)\ny = 2\n",
        "x = 1\n# Rest of the code remains unchanged\n", "int x;\n// ... existing code ...\n",
        "x = 1\n# other methods remain the same.\n", "x = 1\n# [The rest of the implementation]\n",
    ],
)  # fmt: skip
def test_code_that_was_left_out_is_told(code):
    with pytest.raises(DropError, match="code left out"):
        check_whole(code, "x = 0\n")


@pytest.mark.parametrize(
    "code",
    [
        "x = 1\n# The rest of the file is read by lines.\n", "x = 1\n# ...and then back\n", "x = ...\n",
        "x = 1\n# Existing code calls this by position.\n", "def f(*args): ...\n", "    # kept ...\nx = 0\n",
        "x = 1\n# The list stays unchanged\n",
    ],
)  # fmt: skip
def test_comments_of_another_kind_stay(code):
    check_whole(code, "x = 0\n")


def test_what_the_source_says_itself_is_nothing_left_out():
    check_whole("x = 1\n# ...\n", "# ...\nx = 0\n")
    check_whole("int x;\n// ... remaining cases\n", "# ... remaining cases\nx = 0\n")
    check_whole("# a note\n", "# the note\n")
