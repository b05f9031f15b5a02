"""Variable tracking: the chain, the solved example, the wording."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from nano3.eval.ruler import CountTokens, Sources, make_sample

ASSIGNMENT = re.compile(r"VAR ([A-Z]+) = (?:VAR )?([A-Z]+|\d+)")


def parts(sample_text: str) -> tuple[str, str]:
    """The solved example and the question."""
    start = sample_text.rindex("Memorize and track the chain(s)")
    return sample_text[:start], sample_text[start:]


def test_following_the_assignments_gives_the_references(count: CountTokens, sources: Sources) -> None:
    for length in (1024, 2048, 4096):
        for index in range(5):
            sample = make_sample("vt", length, index, 0, count, sources)
            _, question = parts(sample.text)
            value = re.search(r"assigned the value (\d{5}) in the text above\.$", question)
            assert value is not None
            known = {value[1]}
            found = []
            for name, source in ASSIGNMENT.findall(question):
                if source in known:
                    known.add(name)
                    found.append(name)
            assert found == sample.references
            assert len(found) == len(set(found)) == 5
            assert all(re.fullmatch("[A-Z]{5}", name) for name in found)


def test_wording(count: CountTokens, sources: Sources) -> None:
    sample = make_sample("vt", 4096, 0, 0, count, sources)
    _, question = parts(sample.text)
    value = re.findall(r"\d{5}", question)[-1]
    assert question.startswith(
        "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
    )
    assert question.endswith(f"\nQuestion: Find all variables that are assigned the value {value} in the text above.")
    assert sample.answer_prefix == (
        " Answer: According to the chain(s) of variable assignment in the text above, "
        f"5 variables are assigned the value {value}, they are: "
    )
    lines = question.split("\n\n")[1].split("\n")[:-1]
    noise = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
    assert [line for line in lines[:-1] if not ASSIGNMENT.match(line) and line != noise] == []
    assert [line for line in lines if line.startswith("VAR")] == [
        f"VAR {sample.references[0]} = {value}",
        *(f"VAR {name} = VAR {before} " for before, name in pairwise(sample.references)),
    ]


def test_a_solved_example_with_short_names_stands_first(count: CountTokens, sources: Sources) -> None:
    first, second = (parts(make_sample("vt", 8192, index, 0, count, sources).text)[0] for index in (0, 1))
    answer = first.rsplit("they are: ", 1)[1]
    assert answer.startswith(" ")
    assert answer.endswith("\n\n")
    assert not answer.endswith("\n\n\n")
    assert answer.split() == [name for name, _ in ASSIGNMENT.findall(first)]
    assert all(len(name) == 3 for name in answer.split())
    varied = re.compile(r"\b[A-Z]{3}\b|\b\d{5}\b")
    assert varied.sub("X", first) == varied.sub("X", second)
    assert not {*varied.findall(first)} - {"VAR"} & {*varied.findall(second)}


def test_the_example_fills_500_tokens_before_its_answer(sources: Sources) -> None:
    """With 28 tokens a line of noise: as many lines as the reference's search finds."""
    words = lambda text: len(re.findall(r"\w+|[^\w\s]|\n", text))  # noqa: E731
    example, _ = parts(make_sample("vt", 8192, 0, 0, words, sources).text)
    asked, _, _ = example.rpartition("they are: ")
    line = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
    assert 500 - words(line) < words(asked + "they are: ") <= 500


@pytest.mark.parametrize("length", [256, 300, 400, 512])
def test_assignments_have_lines_of_their_own_however_little_noise(length: int, sources: Sources) -> None:
    sample = make_sample("vt", length, 0, 0, lambda text: len(text.split()), sources)
    _, question = parts(sample.text)
    found = [line for line in question.split("\n") if "VAR" in line]
    assert len(found) == 5
    assert all(line.startswith("VAR ") for line in found)
