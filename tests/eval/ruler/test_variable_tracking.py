"""Variable tracking: the chain, the solved example, the wording."""

from __future__ import annotations

import re

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
        f"5 variables are assgined the value {value}, they are: "
    )
    assert "There and back again.\n The grass is green." in question


def test_a_solved_example_with_short_names_stands_first(count: CountTokens, sources: Sources) -> None:
    first, second = (parts(make_sample("vt", 8192, index, 0, count, sources).text)[0] for index in (0, 1))
    answer = first.rsplit("they are: ", 1)[1]
    assert answer.endswith("\n\n\n\n")
    assert answer.split() == [name for name, _ in ASSIGNMENT.findall(first)]
    assert all(len(name) == 3 for name in answer.split())
    assert count(first) <= 500
    names = re.compile(r"\b[A-Z]{3}\b")
    assert first != second
    assert names.sub("X", first) == names.sub("X", second)
