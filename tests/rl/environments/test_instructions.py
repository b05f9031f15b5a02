"""Each rule holds for an answer that follows it and not for one that does not."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nano3.config.errors import UserError
from nano3.rl.environments.base import Rollout
from nano3.rl.environments.instructions.environment import InstructionFollowing
from nano3.rl.environments.instructions.rules import RULES, follows, sentences, words

CASES = [
    ("keywords:existence", {"keywords": ["cat", "New York"]}, "A Cat in new york.", "A category in New York."),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "A category.", "My CAT!"),
    ("keywords:frequency", {"keyword": "cat", "frequency": 2, "relation": "exactly"}, "cat, Cat", "cat cat cat"),
    ("keywords:frequency", {"keyword": "cat", "frequency": 2, "relation": "less than"}, "one cat", "cat cat"),
    ("keywords:letter_frequency", {"letter": "a", "let_frequency": 3, "let_relation": "at least"}, "A banana", "an ax"),
    (
        "language:response_language",
        {"language": "de"},
        "Das ist ein langer deutscher Satz über das Wetter von heute.",
        "This is a long English sentence about the weather of today.",
    ),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "exactly"}, "Yes. No!", "Yes and no."),
    ("length_constraints:number_words", {"num_words": 3, "relation": "exactly"}, "one, two, it's", "one two"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n***\nb\n***\n"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        'First a.\n\n"Then" b.',
        "Then a.\n\nFirst b.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name], [street]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Hi.\nP.S. Bye", "Hi. P.S."),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n* b\n* c"),
    ("detectable_format:constrained_response", {}, "My answer is no.\n", "no"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b c**", "*a* and * *"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1\na\nSection 2\nb",
        "Section one",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', '{"a": 1} yes'),
    ("detectable_format:title", {}, "<<A title>>\ntext", "<< >> text"),
    ("combination:two_responses", {}, "yes ****** no", "yes ****** yes"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say a."}, "Say a. a", "a"),
    ("startend:end_checker", {"end_phrase": "the end."}, "This is The End.", "The end. Not."),
    ("startend:quotation", {}, '"quoted"', '"not'),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        "SO it IS",
        "SO it is",
    ),
    ("change_case:english_capital", {}, "ALL OF IT 1", "ALL OF it"),
    ("change_case:english_lowercase", {}, "all of it 1", "all of It"),
    ("punctuation:no_comma", {}, "a; b.", "a, b."),
    ("startend:start_checker", {"start_phrase": "well"}, "Well, yes", "Yes, well"),
    ("count:word_range", {"min_words": 2, "max_words": 3}, "one two", "one two three four"),
    ("count:unique_words", {"num_words": 3}, "a b c a", "a b A b"),
    ("count:numbers", {"num_numbers": 2}, "3 apples for 1,000.50", "3 4 5"),
    ("count:lines", {"num_lines": 2}, "a\n\nb\n", "a"),
    ("words:no_repeats", {}, "a b c", "a b A"),
    ("words:alphabetical", {}, "ant Bee cat", "bee ant"),
    ("words:no_letter", {"letter": "e"}, "a or b", "Even"),
    ("format:separator", {"separator": ";", "num_items": 2}, "a; b", "a; ; b"),
]
IFEVAL = {case[0] for case in CASES if case[0].split(":")[0] not in ("count", "words", "format")} - {
    "startend:start_checker"
}


@pytest.mark.parametrize(("rule", "arguments", "good", "bad"), CASES, ids=[case[0] for case in CASES])
def test_rules(rule, arguments, good, bad):
    assert follows(good, rule, arguments)
    assert not follows(bad, rule, arguments)
    assert not follows(" \n", rule, arguments)


def test_all_rules_are_tried_here_and_ifevals_25_are_among_them():
    assert {case[0] for case in CASES} == RULES.keys()
    assert len(IFEVAL) == 25


@given(st.text(max_size=200), st.sampled_from([case for case in CASES if not case[0].startswith("language")]))
@settings(deadline=None, max_examples=60)
def test_no_answer_breaks_a_rule_checker(text, case):
    assert follows(text, case[0], case[1]) in (True, False)


@given(st.lists(st.text("abcdefgh", min_size=1, max_size=8), min_size=1, max_size=20))
def test_words_and_sentences_are_counted(found):
    assert words(" ".join(found)) == found
    assert len(sentences(". ".join(found) + ".")) == len(found)


@pytest.mark.parametrize("rule", [case[0] for case in CASES if not case[0].startswith("language")])
def test_huge_answers_are_checked_in_time(rule):
    arguments = next(case[1] for case in CASES if case[0] == rule)
    n = 80_000
    texts = ["* [<" * n, "a " * n, "\n" * n + "a", "\n " * n + "a", "*" * n, "[" * n, "<<" * n, "." * n + '"' * n]
    started = time.monotonic()
    for text in [*texts, "*" + "a" * n, "**" + "a" * n, "<<" + "a" * n, "a-" * n, "* a" * n, "1," * n]:
        follows(text, rule, arguments)
    assert time.monotonic() - started < 60  # minutes where a pattern tries each place anew


def test_the_language_is_the_same_each_time():
    text = "Das ist ein Satz."
    assert len({follows(text, "language:response_language", {"language": "de"}) for _ in range(20)}) == 1


def row(**changes):
    rules = ["punctuation:no_comma", "count:lines"]
    return {"prompt": "q", "instruction_id_list": rules, "kwargs": [{}, {"num_lines": 1, "other": None}], **changes}


def test_all_or_part_of_the_rules():
    for partial, half in ((False, 0.0), (True, 0.5)):
        made = InstructionFollowing([row()], partial=partial)
        [task] = made.tasks()
        assert made.verify(task, Rollout.of_text("a")).value == 1.0
        found = made.verify(task, Rollout.of_text("a, b"))
        assert (found.value, found.passed) == (half, False)
        assert made.verify(task, Rollout.of_text("")).value == 0.0
        assert made.verify(task, Rollout.of_text("a" * 200_000)).value == 0.0


def test_tasks_made_here_can_be_solved():
    made = InstructionFollowing(n=12, seed=1)
    assert len(made.tasks()) == 12
    for task in made.tasks():
        assert all(rule in RULES for rule in task.truth[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"instruction_id_list": ["no:such", "count:lines"]}, "no rule no:such"),
        ({"kwargs": [{}]}, "2 rules with arguments of 1"),
        ({"kwargs": [{}, {"lines": 3}]}, "rule count:lines"),
        ({"instruction_id_list": [], "kwargs": []}, "0 rules"),
    ],
)
def test_rows_out_of_form_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        InstructionFollowing([row(**changes)])
