"""Needle tasks: what is hidden, where, and what is asked."""

from __future__ import annotations

import re

import pytest

from nano3.eval.ruler import CountTokens, Sources, make_sample
from nano3.eval.ruler.niah import DEPTHS, VARIANTS
from nano3.eval.ruler.templates import NEEDLE, NOISE
from nano3.eval.ruler.words import WordList

NEEDLES = re.compile(NEEDLE.format(kind=r"(\w+)", key="(.+?)", value="(.+?)") + r"(?=\s)")
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def test_wording_for_one_answer(count: CountTokens, sources: Sources) -> None:
    sample = make_sample("niah_single_1", 1024, 0, 0, count, sources)
    key = re.search(r"What is the special magic number for (\S+-\S+) mentioned in the provided text\?$", sample.text)
    assert key is not None
    assert sample.text.startswith(
        "A special magic number is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the number afterwards.\n"
    )
    assert sample.answer_prefix == f" The special magic number for {key[1]} mentioned in the provided text is"
    assert f"One of the special magic numbers for {key[1]} is: {sample.references[0]}." in sample.text
    assert re.fullmatch(r"\d{7}", sample.references[0])
    assert sample.text.count("\n" + " ".join(NOISE) + "\n") > 5


def test_wording_for_several_answers(count: CountTokens, sources: Sources) -> None:
    sample = make_sample("niah_multiquery", 2048, 0, 0, count, sources)
    asked = re.search(
        r"What are all the special magic numbers for (\S+), (\S+), (\S+), and (\S+) mentioned in the provided text\?$",
        sample.text,
    )
    assert asked is not None
    assert sample.text.startswith("Some special magic numbers are hidden within the following text. Make sure to memo")
    assert sample.answer_prefix.endswith(f", and {asked[4]} mentioned in the provided text are")
    told = {key: value for _, key, value in NEEDLES.findall(sample.text)}
    assert [told[key] for key in asked.groups()] == sample.references


@pytest.mark.parametrize("task", sorted(VARIANTS))
def test_needles_are_those_of_the_variant(task: str, count: CountTokens, sources: Sources) -> None:
    variant = VARIANTS[task]
    sample = make_sample(task, 4096, 3, 0, count, sources)
    found = NEEDLES.findall(sample.text)
    if variant.haystack == "needle":
        assert len(found) > 20
    else:
        assert len(found) == variant.n_keys * variant.n_values
    assert len(sample.references) == variant.n_values * variant.n_queries
    assert {kind for kind, _, _ in found} == {variant.value}
    for _, key, value in found:
        assert bool(UUID.fullmatch(key)) == (variant.key == "uuid")
        assert bool(UUID.fullmatch(value)) == (variant.value == "uuid")
    assert set(sample.references) <= {value for _, _, value in found}


@pytest.mark.parametrize("task", ["niah_multikey_1", "niah_multikey_2", "niah_multiquery"])
def test_no_other_needle_has_the_asked_key_or_value(task: str, count: CountTokens, sources: Sources) -> None:
    few_words = Sources(words=WordList("few", False, ["red", "old"], ["car", "dog", "hat"], []))
    for index in range(10):
        sample = make_sample(task, 4096, index, 0, count, few_words)
        found = NEEDLES.findall(sample.text)
        asked = re.findall(r"\w+-\w+", sample.answer_prefix)
        assert len(asked) == len(set(asked)) == len(sample.references)
        for query, answer in zip(asked, sample.references, strict=True):
            assert [value for _, key, value in found if key == query] == [answer]
            assert [value for _, _, value in found].count(answer) == 1


def test_depths_are_the_references_forty() -> None:
    assert len(DEPTHS) == len(set(DEPTHS)) == 40
    assert DEPTHS[:4] == (0, 3, 5, 8)
    assert DEPTHS[-2:] == (97, 100)


@pytest.mark.parametrize("task", ["niah_single_1", "niah_single_2", "niah_multikey_2"])
def test_needles_lie_everywhere(task: str, count: CountTokens, sources: Sources) -> None:
    depths = [make_sample(task, 2048, index, 0, count, sources).depth for index in range(80)]
    known = [depth for depth in depths if depth is not None]
    assert len(known) == 80
    assert min(known) < 0.08
    assert max(known) > 0.92
    assert {int(depth * 5) for depth in known} >= {0, 1, 2, 3, 4}


def test_the_depth_is_where_the_needle_is(count: CountTokens, sources: Sources) -> None:
    for index in range(10):
        sample = make_sample("niah_single_1", 4096, index, 0, count, sources)
        before = sample.text.index("One of the special magic")
        assert sample.depth == pytest.approx(before / len(sample.text), abs=0.05)


def test_several_needles_have_no_single_depth(count: CountTokens, sources: Sources) -> None:
    assert make_sample("niah_multivalue", 2048, 0, 0, count, sources).depth is None
