"""Dialogues about code by a model that is told what to write."""

import pytest

from nano3.config.errors import UserError

from ...conftest import dropped

PYTHON = """def count_words(text):
    counts = {}
    for word in text.split():
        counts[word] = 1
    return counts
"""
FIXED = PYTHON.replace("= 1", "= counts.get(word, 0) + 1")
CPP = "int count_words(int length) { int counts = length; return counts; }\n"
SPEAKERS = {"questions": ("Question", "Answer"), "lesson": ("Student", "Teacher"), "review": ("Reviewer", "Author")}


def dialogue(kind, n=3, words="count_words fills counts", end=""):
    first, second = SPEAKERS[kind]
    pairs = [f"### {first}\n{words}, number {i}?\n\n### {second}\nBecause of {words}." for i in range(n)]
    return "\n\n".join(pairs) + end


def revised(code, language="python"):
    return f"\n\nThe whole file:\n\n```{language}\n{code}```"


GOOD = {
    "questions": dialogue("questions"),
    "lesson": dialogue("lesson", 4),
    "review": dialogue("review", end=revised(FIXED)),
}


def written(curate, server, kind, said, row=None, **settings):
    server.reply = lambda prompt, body: said
    rows = [row or {"id": "a.py", "text": PYTHON}]
    report, kept = curate([("code-dialogue", {"kind": kind} | settings)], rows, server=server.url)
    return kept, dropped(report, "dialogue")


@pytest.mark.parametrize("kind", GOOD)
def test_a_dialogue_stands_below_its_code(curate, model_server, kind):
    [row], _ = written(curate, model_server, kind, GOOD[kind])
    first, second = SPEAKERS[kind]
    assert row["text"].startswith(f"```python\n{PYTHON}```\n\n**{first}:** count_words fills counts, number 0?")
    assert row["text"].count(f"**{first}:**") == row["text"].count(f"**{second}:**") == (4 if kind == "lesson" else 3)
    assert row["id"] == f"a.py/{kind}"
    assert row["metadata"]["kind"] == kind
    assert PYTHON in model_server.prompts[0]


def test_a_review_of_cpp_is_checked_as_cpp(curate, model_server):
    row = {"id": "a.cpp", "text": CPP}
    better = CPP.replace("int counts = length; return counts;", "return length;")
    kept, _ = written(curate, model_server, "review", dialogue("review", end=revised(better, "cpp")), row)
    assert len(kept) == 1


@pytest.mark.parametrize(
    ("kind", "said", "reason"),
    [
        ("questions", "count_words counts words.", "reply that does not begin with a turn"),
        ("questions", "The code is short.\n\n" + GOOD["questions"], "reply that does not begin with a turn"),
        ("questions", dialogue("questions", 2), "too few turns"),
        ("questions", GOOD["questions"] + "\n\n### Question\nWhat is counts?", "speakers do not take turns"),
        ("questions", GOOD["questions"] + "\n\n### Answer\ncounts.", "speakers do not take turns"),
        ("questions", GOOD["questions"] + "\n\n### Question\n\n### Answer\ncounts.", "empty turn"),
        ("questions", GOOD["questions"].replace("number 1", "number 0"), "the same turn twice"),
        ("questions", dialogue("questions", words="the weather is fine"), "dialogue about something else"),
        ("lesson", GOOD["questions"], "reply that does not begin with a turn"),
        ("lesson", GOOD["lesson"].replace("### Student", "### X").replace("### Teacher", "### Student")
         .replace("### X", "### Teacher"), "speakers do not take turns"),
        ("review", dialogue("review"), "review without revised code"),
        ("review", dialogue("review", end=revised("counts[word] += 1\n")), "review with a part of the code"),
        ("review", dialogue("review", end=revised(PYTHON)), "review that changes nothing"),
        ("review", dialogue("review", end=revised(FIXED.replace("):", ":"))), "revised code with a syntax error"),
    ],
)  # fmt: skip
def test_dialogues_of_another_form_are_dropped(curate, model_server, kind, said, reason):
    kept, reasons = written(curate, model_server, kind, said)
    assert kept == []
    assert reasons == {reason: 1}


def test_an_announcement_is_no_part_of_a_dialogue(curate, model_server):
    said = "Sure! Here is the dialogue:\n\n" + GOOD["lesson"]
    [row], _ = written(curate, model_server, "lesson", said)
    assert "Here is" not in row["text"]


def test_headings_inside_code_are_no_turns(curate, model_server):
    said = GOOD["questions"] + "\n\nSo:\n\n```\n### Question\n```\n\n### Note\nmore"
    [row], _ = written(curate, model_server, "questions", said)
    assert "```\n### Question\n```\n\n### Note\nmore" in row["text"]


@pytest.mark.parametrize(
    ("kind", "row", "reason"),
    [
        ("lesson", {"id": "a.cpp", "text": CPP}, "no code in python"),
        ("review", {"id": "a.go", "text": "package main"}, "no code in python or cpp"),
        ("questions", {"id": "notes.md", "text": "words"}, "no code in a known language"),
        ("questions", {"id": "a.py", "text": "x = 1\n" * 100}, "too long to talk about"),
    ],
)
def test_what_is_no_seed_is_not_sent(curate, model_server, kind, row, reason):
    kept, reasons = written(curate, model_server, kind, GOOD[kind], row, most=400)
    assert (kept, reasons, model_server.prompts) == ([], {reason: 1}, [])


def test_an_unknown_kind_is_refused(curate):
    with pytest.raises(UserError, match="kind"):
        curate([("code-dialogue", {"kind": "chat"})], ["x"])
