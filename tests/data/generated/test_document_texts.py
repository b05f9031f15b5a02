from __future__ import annotations

import random
import re

import numpy as np
import pytest

from nano3.data.generated.document_qa import ask, make_example
from nano3.data.generated.document_questions import KINDS, WITHOUT_TITLES, Documents, value
from nano3.data.generated.document_texts import DocumentTexts
from nano3.data.texts.passages import PassageIndex
from nano3.data.tokens.lengths import TokenCounter


@pytest.fixture(scope="module")
def passages(library):
    return PassageIndex(library)


@pytest.fixture(scope="module")
def maker(tokenizer, passages):
    return DocumentTexts(TokenCounter.of(tokenizer), 3, passages)


def check(question, body, titles):
    assert all(body.count(part) == 1 for part in question.evidence)
    if question.kind in ("source", "shared", "next-document"):
        assert question.answer in titles
    else:
        assert question.answer in question.evidence[0]


def test_answers_are_where_they_are_claimed_and_nowhere_else(maker, passages):
    titles = {section.title for section in passages.sections}
    kinds = set()
    for index in range(30):
        made = maker.make(index, 3000)
        body = made.text[: min(made.text.rindex(question.text) for question in made.questions)]
        for question in made.questions:
            kinds.add(question.kind)
            check(question, body, titles)
            assert abs(body.index(question.evidence[0]) / len(body) - question.depth) < 0.03
    assert kinds >= {"cloze", "source", "follows", "precedes", "next-document", "default", "class", "function", "value"}


def test_no_answer_about_a_line_stands_in_another_question(library):
    n_asked = 0
    for index in range(30):
        documents = Documents(["a"], ["\n".join(library[2 * index].text.splitlines()[:12])])
        questions = ask(documents, 12, ("cloze", "follows"), random.Random(index))
        n_asked += len(questions)
        for question in questions:
            others = [other for other in questions if other is not question]
            said = "\n".join("\n".join((other.text, *other.answers)) for other in others)
            if question.kind == "cloze":
                assert not re.search(rf"\b{re.escape(question.answer)}\b", said)
            if question.kind in ("follows", "precedes"):
                assert question.answer not in said
    assert n_asked > 60


@pytest.mark.parametrize(
    ("again", "asked"),
    [
        ("", True),
        ("MY_LIMIT=7", False),
        ("MY_LIMIT: int = 7", False),
        ("    box.MY_LIMIT  =7", False),
        ('d = {"MY_LIMIT": 7}', False),
        ("MY_LIMIT += 1", False),
        ("if MY_LIMIT == 7 or MY_LIMITS:", True),
        ("OTHER_MY_LIMIT = 7", True),
    ],
)
def test_a_name_with_two_values_is_not_asked_for(again, asked):
    documents = Documents(["a"], [f"import os\nMY_LIMIT = 42\n{again}\n"])
    question = value(documents, 0, 1, random.Random(0))
    assert (question is not None) == asked


@pytest.mark.parametrize("tokens", [255, 511, 4095, 12000])
def test_length_is_met_and_never_exceeded(maker, tokenizer, tokens):
    for index in range(max(2, 4000 // tokens)):
        made = maker.make(index, tokens)
        count = len(tokenizer.encode(made.text))
        assert made.tokens == count
        assert 0.99 * tokens <= count <= tokens


def test_depths_cover_the_text_evenly(maker):
    depths = [question.depth for index in range(80) for question in maker.make(index, 2000).questions]
    shares, _ = np.histogram(depths, 5, (0, 1))
    assert shares.min() > 0.4 * len(depths) / 5


def test_seed_and_index_decide_the_text(maker, tokenizer, passages):
    again = DocumentTexts(TokenCounter.of(tokenizer), 3, passages)
    assert again.make(5, 1000) == maker.make(5, 1000)
    assert len({again.make(index, 1000).text for index in range(4)}) == 4


def test_too_little_text_for_the_length_is_an_error(maker):
    with pytest.raises(ValueError, match="give more texts"):
        maker.make(0, 200_000)


def test_an_example_of_passages_has_its_answer_in_one_of_them(passages):
    for index in range(40):
        example = make_example(index, 1, passages, 20, kinds=WITHOUT_TITLES)
        (question,) = example.questions
        assert example.passages[example.positions[0]].count(question.evidence[0]) == 1
        check(question, "\n".join(example.passages), example.titles)


def test_more_passages_keep_the_question(passages):
    few, many = (make_example(3, 1, passages, n, kinds=("cloze",)) for n in (5, 60))
    assert few.question == many.question
    assert set(few.passages) <= set(many.passages)


def test_all_kinds_can_be_asked_at_once(passages):
    example = make_example(0, 1, passages, len(passages.passages), n_questions=200)
    assert len(example.questions) > 100
    assert len({q.kind for q in example.questions}) >= len(KINDS)


def test_more_passages_than_there_are_is_an_error(passages):
    with pytest.raises(ValueError, match="passages are wanted"):
        make_example(0, 1, passages, 100_000)
