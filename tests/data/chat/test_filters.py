"""Filters of what an assistant wrote."""

import random

import pytest

from nano3.config.sft import FilterConfig
from nano3.data.chat.conversation import Conversation, RowError
from nano3.data.chat.filters import KEYWORD, PATTERN, TRACE, WINDOW, Filters, most_repeated

WORDS = [str(i) for i in range(1000)]


def conversation(content, reasoning="", user="hi"):
    answer = {"role": "assistant", "content": content} | ({"reasoning_content": reasoning} if reasoning else {})
    return Conversation("x:1", [{"role": "user", "content": user}, answer])


def reason(content, reasoning="", user="hi", **settings):
    try:
        Filters(FilterConfig(**settings)).check(conversation(content, reasoning, user))
    except RowError as error:
        return error.reason
    return None


def naive(words, n, window):
    best = 0
    for start in range(len(words)):
        part = words[start : start + window] if window else words
        grams = [tuple(part[i : i + n]) for i in range(len(part) - n + 1)]
        best = max([best, *(grams.count(gram) for gram in set(grams))])
    return best


@pytest.mark.parametrize("window", [0, 7, 12])
def test_repeats_are_those_that_a_window_really_holds(window):
    rng = random.Random(window)
    for _ in range(30):
        words = rng.choices("ab", k=rng.randrange(0, 30))
        n = rng.randint(1, 3)
        found, ngram = most_repeated(words, n, window)
        assert found == naive(words, n, window)
        assert len(ngram) == (n if found else 0)


def test_repetition_within_a_window_and_over_a_trace():
    loop = ["so", "the", "answer", "is"]
    near, far = [], []
    for i in range(4):
        near += loop
        far += [*loop, *WORDS[100 * i : 100 * i + 50]]
    settings = {"ngram": 4, "window": 40, "window_repeats": 3, "trace_repeats": 3}
    assert reason("done", " ".join(near), **settings) == WINDOW
    assert reason("done", " ".join(far), **settings) == TRACE
    assert reason(" ".join(far), **settings) == TRACE
    assert reason("done", " ".join(far), user=" ".join(near), **{**settings, "trace_repeats": 4}) is None
    assert reason("done", " ".join(near), **{**settings, "window_repeats": 0, "trace_repeats": 0}) is None


def test_keywords_are_whole_words_in_any_case_and_patterns_are_as_they_are():
    assert reason("We in Atlantis say so.", keywords=["atlantis"]) == KEYWORD
    assert reason("two", "As a loyal  citizen", keywords=["loyal citizen"]) is None
    assert reason("atlantisian", keywords=["atlantis"]) is None
    assert reason("ok", user="Atlantis?", keywords=["atlantis"]) is None
    assert reason("C++ rules", keywords=["c++"]) == KEYWORD
    assert reason("our great party", patterns=[r"our \w+ party"]) == PATTERN
    assert reason("Our great party", patterns=[r"our \w+ party"]) is None


def test_settings_that_mean_nothing_are_refused():
    for settings, words in (
        ({"patterns": ["("]}, r"filters.patterns: '\(' is no regular expression"),
        ({"keywords": [" "]}, "empty text"),
        ({"ngram": 9, "window": 8}, "must hold an n-gram of 9"),
        ({"window_repeats": -1}, "at least 0"),
    ):
        with pytest.raises(ValueError, match=words):
            FilterConfig(**settings)
