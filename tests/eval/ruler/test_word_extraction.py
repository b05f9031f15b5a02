"""Common and frequent words: lists, counts, wording."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from nano3.eval.ruler import CountTokens, Sources, make_sample
from nano3.eval.ruler.word_extraction import LEAST_WORDS, frequencies
from nano3.eval.ruler.words import built_in

ITEM = re.compile(r"(\d+)\. (\S+)")


def lists(text: str) -> tuple[str, str]:
    """The solved example and the question."""
    start = text.rindex("Below is a numbered list of words.")
    return text[:start], text[start:]


@pytest.mark.parametrize(
    ("length", "common", "uncommon", "example"), [(2048, 6, 1, (3, 1, 20)), (8192, 30, 3, (10, 3, 40))]
)
def test_cwe_repeats_words_as_the_reference(
    length: int, common: int, uncommon: int, example: tuple[int, int, int], count: CountTokens, sources: Sources
) -> None:
    sample = make_sample("cwe", length, 0, 0, count, sources)
    solved, question = lists(sample.text)
    items = ITEM.findall(question)
    assert [int(number) for number, _ in items] == list(range(1, len(items) + 1))
    counts = Counter(word for _, word in items)
    assert {word for word, n in counts.items() if n == common} == set(sample.references)
    assert len(sample.references) == 10
    assert {n for word, n in counts.items() if word not in sample.references} == {uncommon}
    shown, answer = solved.split("appear most often in the list are:")
    example_counts = Counter(word for _, word in ITEM.findall(shown))
    solution = [word for _, word in ITEM.findall(answer)]
    assert len(example_counts) == example[2]
    assert [example_counts[word] for word in solution] == [example[0]] * 10
    assert sorted(example_counts.values())[0] == example[1]


def test_cwe_wording(count: CountTokens, sources: Sources) -> None:
    sample = make_sample("cwe", 8192, 0, 0, count, sources)
    solved, question = lists(sample.text)
    assert question.startswith(
        "Below is a numbered list of words. In these words, some appear more often than others. "
        "Memorize the ones that appear most often.\n1. "
    )
    assert question.endswith("\nQuestion: What are the 10 most common words in the above list?")
    assert sample.answer_prefix == " Answer: The top 10 words that appear most often in the list are:"
    assert re.search(r"in the above list\? Answer: The top 10 words .* list are: 1\. \S+ 2\. .* 10\. \S+\n$", solved)


def test_cwe_has_words_for_any_length() -> None:
    words = built_in().at_least(60_000)
    assert len(words) == len(set(words)) == 60_000
    assert all(word.isalpha() for word in words)
    assert list(words[:500]) == list(built_in().at_least(500)[:500])


def test_fwe_asks_for_the_three_most_frequent(count: CountTokens, sources: Sources) -> None:
    for length in (1024, 4096, 16384):
        sample = make_sample("fwe", length, 1, 0, count, sources)
        context = sample.text.split("coded words. ")[1].split("\nQuestion:")[0]
        counts = Counter(context.split(" "))
        assert counts.most_common(1)[0][0] == "..."
        del counts["..."]
        assert [word for word, _ in counts.most_common(3)] == sample.references
        assert counts.most_common(4)[3][1] < counts[sample.references[2]]
        assert all(re.fullmatch("[a-z]{6}", word) for word in counts)


def test_fwe_frequencies_follow_the_zeta_distribution() -> None:
    assert frequencies(100_000, 5) == [60792, 15198, 6754, 3799, 2431]
    for n in range(LEAST_WORDS, 3000):
        _, second, third, fourth, fifth = frequencies(n, 5)
        assert second > third > fourth > fifth


def test_fwe_wording(count: CountTokens, sources: Sources) -> None:
    sample = make_sample("fwe", 2048, 0, 0, count, sources)
    assert sample.text.startswith(
        "Read the following coded text and track the frequency of each coded word. "
        "Find the three most frequently appeared coded words. "
    )
    assert sample.text.endswith(
        "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. "
        "What are the three most frequently appeared words in the above coded text?"
    )
    assert sample.answer_prefix == (
        " Answer: According to the coded text above, the three most frequently appeared words are:"
    )
