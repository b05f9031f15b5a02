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
        best = max([best, *(apart(grams, gram, n) for gram in set(grams))])
    return best


def apart(grams, gram, n):
    """Occurrences that do not overlap, the first ones first."""
    count, free = 0, 0
    for place, found in enumerate(grams):
        if found == gram and place >= free:
            count, free = count + 1, place + n
    return count


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


def test_a_long_number_word_by_word_is_no_repetition():
    """A row of 22 zeros holds one 16-gram, not seven."""
    zeros = {"ngram": 16, "window": 64, "window_repeats": 1}
    assert reason("0 " * 22, **zeros) is None
    assert reason("0 " * 32, **zeros) == WINDOW
    assert most_repeated("0" * 22, 16, 64) == (1, ("0",) * 16)


def test_what_a_call_says_is_what_the_assistant_wrote():
    def check(arguments, **settings):
        call = {"type": "function", "function": {"name": "run", "arguments": arguments}}
        said = conversation("")
        said.messages[1]["tool_calls"] = [call]
        with pytest.raises(RowError) as caught:
            Filters(FilterConfig(**settings)).check(said)
        return caught.value.reason

    loop = "\n".join(["print the sum of both"] * 9)
    assert check({"code": loop}, ngram=5, window_repeats=8) == WINDOW
    assert check({"steps": [{"code": loop}]}, ngram=5, window_repeats=8) == WINDOW
    assert check({"to": {"name": "Atlantis"}}, keywords=["atlantis"]) == KEYWORD
    assert check({"code": "rm -rf /"}, patterns=["rm -rf"]) == PATTERN


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
