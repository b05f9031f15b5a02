"""The built-in questions of qa_1 and qa_2."""

from __future__ import annotations

import re

from nano3.eval.ruler import CountTokens, Sources, make_sample


def test_the_answer_is_in_the_documents(count: CountTokens, sources: Sources) -> None:
    for index in range(6):
        sample = make_sample("qa_1", 4096, index, 0, count, sources)
        context, question = sample.text.rsplit("\n\nAnswer the question based", 1)
        assert any(answer in context for answer in sample.references)
        assert question.split("Question: ")[1].strip()
        assert count(sample.references[0]) <= 32


def test_qa_2_asks_across_documents_by_title(count: CountTokens, sources: Sources) -> None:
    for index in range(6):
        sample = make_sample("qa_2", 8192, index, 0, count, sources)
        titles = re.findall(r"\n\nDocument \d+:\n(.+)\n", sample.text)
        assert len(titles) == len(set(titles)) > 10
        assert sample.references[0] in titles
