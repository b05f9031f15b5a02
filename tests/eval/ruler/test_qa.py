"""Questions about documents: files of the reference's form, and what is hidden among what."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from nano3.config.errors import UserError
from nano3.eval.ruler import CountTokens, Sources, TooShort, make_sample, score
from nano3.eval.ruler.words import built_in

N_ARTICLES, N_PARAGRAPHS = 6, 5


def paragraph(article: int, number: int) -> str:
    filler = " ".join(f"Sentence {i} of it tells nothing of note about towns." for i in range(6 + article))
    return f"The town of Alpha{article}x{number} was founded by Beta{article}x{number}. {filler}"


@pytest.fixture(scope="module")
def squad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def question(article: int, number: int) -> list[dict[str, Any]]:
        name = f"Beta{article}x{number}"
        asked = f"Who founded Alpha{article}x{number}?"
        answers = [{"text": name}, {"text": f"the founder {name}"}]
        return [
            {"question": "Who sold it?", "answers": [], "is_impossible": True},
            {"question": asked, "answers": answers, "is_impossible": False},
        ]

    articles = [
        {
            "title": f"A{a}",
            "paragraphs": [{"context": paragraph(a, n), "qas": question(a, n)} for n in range(N_PARAGRAPHS)],
        }
        for a in range(N_ARTICLES)
    ]
    file = tmp_path_factory.mktemp("qa") / "dev-v2.0.json"
    file.write_text(json.dumps({"version": "v2.0", "data": articles}), "utf-8")
    return file


@pytest.fixture(scope="module")
def hotpotqa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    items = [
        {
            "question": f"Where was the founder of Alpha{i}x0 born?",
            "answer": f"Gamma{i}",
            "supporting_facts": [[f"T{i}x3", 0], [f"T{i}x7", 1]],
            "context": [
                [f"T{i}x{n}", [f"Fact {n} of {i}.", f" Gamma{i} it was." if n == 7 else " Nothing else is known."]]
                for n in range(10)
            ],
        }
        for i in range(30)
    ]
    file = tmp_path_factory.mktemp("hotpot") / "hotpot.json"
    file.write_text(json.dumps(items), "utf-8")
    return file


@pytest.fixture(scope="module")
def files(squad: Path, hotpotqa: Path) -> Sources:
    return Sources(words=built_in(), squad=squad, hotpotqa=hotpotqa)


def documents(text: str) -> list[str]:
    context = text.split("given documents.\n\n")[1].split("\n\nAnswer the question based", maxsplit=1)[0]
    parts = re.split(r"(?:^|\n\n)Document (\d+):\n", context)[1:]
    assert parts[::2] == [str(n + 1) for n in range(len(parts) // 2)]
    return parts[1::2]


@pytest.mark.parametrize("task", ["qa_1", "qa_2"])
@pytest.mark.parametrize("length", [1024, 4096, 16384])
def test_samples_of_files_fill_their_length(task: str, length: int, files: Sources, count: CountTokens) -> None:
    for index in range(4):
        sample = make_sample(task, length, index, 0, count, files)
        assert sample.n_tokens == count(sample.prompt)
        assert 0.95 * length <= sample.n_tokens + 32 <= length
        assert score(task, sample.references[-1], sample.references) == 1.0
        assert score(task, "nobody", sample.references) == 0.0


def test_questions_come_in_order_with_all_aliases(files: Sources, count: CountTokens) -> None:
    for index in (0, 7):
        sample = make_sample("qa_1", 2048, index, 3, count, files)
        name = f"{index // N_PARAGRAPHS}x{index % N_PARAGRAPHS}"
        assert sample.references == [f"Beta{name}", f"the founder Beta{name}"]
        assert sample.text.endswith(f"\n\nQuestion: Who founded Alpha{name}?")
        assert score("qa_1", f"It was beta{name}.", sample.references) == 1.0


def test_the_document_with_the_answer_stands_anywhere_among_its_article_and_others(
    files: Sources, count: CountTokens
) -> None:
    places = set()
    for index in range(20):
        sample = make_sample("qa_1", 4096, index, 0, count, files)
        found = documents(sample.text)
        article, number = divmod(index, N_PARAGRAPHS)
        places.add(found.index(paragraph(article, number)))
        if len(found) > N_PARAGRAPHS:
            assert {paragraph(article, n) for n in range(N_PARAGRAPHS)} <= set(found)
    assert len(places) > 5


def test_qa_2_shows_titles_and_both_documents_of_the_answer(files: Sources, count: CountTokens) -> None:
    sample = make_sample("qa_2", 1024, 4, 0, count, files)
    found = documents(sample.text)
    assert {"T4x3\nFact 3 of 4. Nothing else is known.", "T4x7\nFact 7 of 4. Gamma4 it was."} <= set(found)
    assert sample.references == ["Gamma4"]


def test_wording(files: Sources, count: CountTokens) -> None:
    sample = make_sample("qa_1", 1024, 0, 0, count, files)
    instruction = (
        "Answer the question based on the given documents. Only give me the answer and do not output any other words."
    )
    assert sample.text.startswith(f"{instruction}\n\nThe following are given documents.\n\nDocument 1:\nThe town of ")
    assert f"\n\n{instruction}\n\nQuestion: " in sample.text
    assert sample.answer_prefix == " Answer:"


def test_the_documents_of_a_question_must_fit(files: Sources, count: CountTokens) -> None:
    with pytest.raises(TooShort, match="qa_1 does not fit in 200 tokens: the least length is") as caught:
        make_sample("qa_1", 200, 0, 0, count, files)
    assert make_sample("qa_1", caught.value.least, 0, 0, count, files).n_tokens + 32 <= caught.value.least


def test_more_samples_than_questions_is_an_error(files: Sources, count: CountTokens) -> None:
    with pytest.raises(
        UserError, match=r"SQuAD \(dev-v2.0.json, 30 questions, \w{8}\) has 30 questions: ask for at most as"
    ):
        make_sample("qa_1", 2048, 30, 0, count, files)


@pytest.mark.parametrize("content", ["{", "[]", '{"data": [{"title": "a"}]}', '{"data": []}', '[{"a": 1}]'])
def test_other_files_are_refused_in_one_line(content: str, tmp_path: Path, count: CountTokens) -> None:
    file = tmp_path / "other.json"
    file.write_text(content, "utf-8")
    sources = Sources(squad=file, hotpotqa=file)
    for task in ("qa_1", "qa_2"):
        with pytest.raises(UserError, match=r"other\.json") as caught:
            make_sample(task, 2048, 0, 0, count, sources)
        assert "\n" not in str(caught.value)
