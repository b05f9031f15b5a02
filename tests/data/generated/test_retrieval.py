from __future__ import annotations

import numpy as np
import pytest

from nano3.data.generated.retrieval import RetrievalTexts
from nano3.data.texts.passages import PassageIndex
from nano3.data.tokens.lengths import TokenCounter


@pytest.fixture(scope="module")
def makers(tokenizer, library):
    counter = TokenCounter.of(tokenizer)
    return [RetrievalTexts(counter, 3, PassageIndex(library)), RetrievalTexts(counter, 3)]


def test_answers_are_where_they_are_claimed_and_nowhere_else(makers):
    kinds = set()
    for maker in makers:
        for index in range(30):
            made = maker.make(index, 3000)
            body = made.text[: made.text.index(made.questions[0].text)]
            for question in made.questions:
                kinds.add(question.kind)
                assert all(body.count(part) == 1 for part in question.evidence)
                said = " ".join(question.evidence)
                assert all(part in said for part in question.answer.removeprefix("the ").split(", "))
                assert abs(body.index(question.evidence[0]) / len(body) - question.depth) < 0.05
                assert made.text.count(question.text) >= 1
    assert kinds == {"value", "thing", "values", "entry", "entry-back", "entry-next", "chain", "chain-names"}


@pytest.mark.parametrize("tokens", [400, 511, 4095, 20000])
def test_length_is_met_and_never_exceeded(makers, tokenizer, tokens):
    for maker in makers:
        for index in range(max(2, 6000 // tokens)):
            made = maker.make(index, tokens)
            count = len(tokenizer.encode(made.text))
            assert made.tokens == count
            assert 0.99 * tokens <= count <= tokens


def test_length_is_met_where_counts_do_not_add_up(library):
    def count_many(texts):
        return [1 + len(text) // 3 - text.count("\n\n") // 2 for text in texts]

    counter = TokenCounter(count_many)
    assert not counter.additive
    for index in range(5):
        made = RetrievalTexts(counter, 1, PassageIndex(library)).make(index, 2000)
        (count,) = count_many([made.text])
        assert 0.99 * 2000 <= count <= 2000


def test_depths_cover_the_text_evenly(makers):
    depths = [q.depth for index in range(60) for q in makers[1].make(index, 2000).questions if q.kind == "value"]
    shares, _ = np.histogram(depths, 5, (0, 1))
    assert shares.min() > 0.5 * len(depths) / 5


def test_seed_and_index_decide_the_text(makers, tokenizer, library):
    again = RetrievalTexts(TokenCounter.of(tokenizer), 3, PassageIndex(library))
    assert again.make(5, 1000) == makers[0].make(5, 1000)
    other = RetrievalTexts(TokenCounter.of(tokenizer), 4, PassageIndex(library))
    assert len({m.make(i, 1000).text for m in (again, other) for i in (5, 6)}) == 4


def test_too_short_a_text_is_an_error(makers):
    with pytest.raises(ValueError, match="the least is 255"):
        makers[0].make(0, 254)
