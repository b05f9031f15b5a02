"""Crossings of problems with concepts of other fields, by a model that is told what to write."""

import json

import pytest

from nano3.config.errors import UserError
from nano3.curate.steps.llm.concepts import CONCEPTS

from ...conftest import dropped

PROBLEM = (
    "Given a list of whole numbers, find the largest sum of a run of neighbours in it. The list has up to a thousand "
    "numbers between minus one hundred and one hundred, and the answer is one number."
)
NEW = "A buoy rises and falls by known steps each hour. Between which two hours does it gain most height, and how much?"


def written(prompt, body):
    """A good model: candidates that differ, of which it prefers the second."""
    if '"best"' in prompt:
        return json.dumps({"reason": "clear", "best": 2})
    return f"{NEW} Variant {body.get('seed', len(prompt) % 7)}."


def crossed(curate, server, reply, rows=(PROBLEM,), **settings):
    server.reply = reply
    report, kept = curate([("cross", settings)], rows, server=server.url)
    notes = {what: n for what, n in report.steps[-1].account.notes.items() if "not kept" in what}
    return kept, notes, dropped(report, "cross")


def test_each_problem_is_crossed_in_both_ways(curate, model_server):
    kept, notes, _ = crossed(curate, model_server, written)
    assert [(row["id"], row["metadata"]["crossing"]) for row in kept] == [
        ("d0/obfuscate", "obfuscate"), ("d0/complicate", "complicate"),
    ]  # fmt: skip
    assert notes == {}
    for row in kept:
        found = row["metadata"]
        assert found["concept"] in CONCEPTS[found["concept_field"]]
        assert any(f'"{found["concept"]}"' in prompt for prompt in model_server.prompts)
    assert sum("harder problem" in prompt for prompt in model_server.prompts) == 2
    assert sum("Clothe the problem" in prompt for prompt in model_server.prompts) == 2


def test_the_chosen_candidate_is_kept(curate, model_server):
    count = iter(range(100))

    def reply(prompt, body):
        if '"best"' not in prompt:
            return f"{NEW} Number {next(count)}."
        second = prompt.split("Candidate 2:\n\n")[1]
        reply.second = second.strip()
        return json.dumps({"best": 2})

    kept, _, _ = crossed(curate, model_server, reply, crossings=["complicate"])
    assert kept[0]["text"].strip() == reply.second


@pytest.mark.parametrize(
    ("best", "why"),
    [(0, "no candidate good enough"), (3, "no choice in the reply"), ("2", "no choice in the reply"),
     (True, "no choice in the reply"), (None, "no choice in the reply")],
)  # fmt: skip
def test_without_a_choice_there_is_no_crossing(curate, model_server, best, why):
    reply = lambda p, b: json.dumps({"best": best}) if '"best"' in p else NEW  # noqa: E731
    kept, notes, reasons = crossed(curate, model_server, reply, crossings=["obfuscate"])
    assert (kept, notes, reasons) == ([], {f"obfuscate not kept: {why}": 1}, {"no crossing kept": 1})


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (PROBLEM + " And so on.", "copied from the problem"),
        (NEW * 12, "too long"),
        ("Given the text above, find the largest sum.", "speaks of the problem it is made of"),
        ("As in the original problem, find the largest sum.", "speaks of the problem it is made of"),
        ("Eine Boje steigt und fällt jede Stunde um bekannte Schritte. Zwischen welchen Stunden gewinnt sie am meisten "
         "an Höhe, und wie viel ist das? Die Antwort ist eine Zahl in Metern, die auf zwei Stellen zu runden ist.",
         "not English"),
        ("", "empty answer"),
    ],
)  # fmt: skip
def test_candidates_that_are_none_are_told(curate, model_server, said, why):
    kept, notes, _ = crossed(curate, model_server, lambda p, b: said, crossings=["complicate"], candidates=1)
    assert (kept, notes) == ([], {f"complicate not kept: {why}": 1})


def test_one_way_that_fails_leaves_the_other(curate, model_server):
    reply = lambda p, b: PROBLEM if "Clothe" in p else NEW  # noqa: E731
    kept, notes, _ = crossed(curate, model_server, reply, candidates=1)
    assert [row["metadata"]["crossing"] for row in kept] == ["complicate"]
    assert notes == {"obfuscate not kept: copied from the problem": 1}


def test_concepts_come_from_other_fields_and_do_not_depend_on_the_tasks(curate, model_server, tmp_path):
    paths = []
    for i in range(3):
        paths.append(tmp_path / f"{i}.jsonl")
        rows = [{"id": f"p{n}", "text": f"{PROBLEM} {n}", "field": "Physics"} for n in range(i * 8, i * 8 + 8)]
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    model_server.reply = lambda prompt, body: NEW
    drawn = {}
    for tasks in (1, 3):
        _, kept = curate(
            [("cross", {"candidates": 1})], paths=paths, tasks=tasks, out=f"out{tasks}", server=model_server.url
        )
        drawn[tasks] = {row["id"]: (row["metadata"]["concept_field"], row["metadata"]["concept"]) for row in kept}
    assert drawn[1] == drawn[3]
    assert len(drawn[1]) == 48
    fields = {field for field, _ in drawn[1].values()}
    assert fields == set(CONCEPTS) - {"physics"}
    assert len(set(drawn[1].values())) > 20


def test_concepts_of_ones_own_are_read(curate, model_server, tmp_path):
    path = tmp_path / "concepts.txt"
    path.write_text("# mine\nmusic: counterpoint\n\nLaw: habeas corpus\n")
    rows = [{"id": "a", "text": PROBLEM, "field": "law"}]
    kept, _, _ = crossed(curate, model_server, lambda p, b: NEW, rows, candidates=1, concepts=str(path))
    assert {row["metadata"]["concept"] for row in kept} == {"counterpoint"}
    path.write_text("music: fugue\nlaw: habeas corpus\n")
    with pytest.raises(UserError, match="begun with other settings"):
        crossed(curate, model_server, lambda p, b: NEW, rows, candidates=1, concepts=str(path))


@pytest.mark.parametrize(
    ("text", "told"),
    [("music counterpoint\n", "line 1: write `field: concept`"), ("music: a\nmusic: b\n", "has 1 fields"),
     ("", "has 0 fields"), (None, "cannot read")],
)  # fmt: skip
def test_files_that_are_no_concepts_are_refused(curate, tmp_path, text, told):
    path = tmp_path / "concepts.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=r"cross\.concepts") as error:
        curate([("cross", {"concepts": str(path)})], ["x"])
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"crossings": []}, "one or both"), ({"crossings": ["obfuscate", "obfuscate"]}, "one or both"),
     ({"temperature": 0.0}, "temperature 0"), ({"candidates": 0}, "candidates is 0")],
)  # fmt: skip
def test_settings_that_contradict_are_refused(curate, settings, told):
    with pytest.raises(UserError, match=told):
        curate([("cross", settings)], ["x"])


def test_a_problem_about_a_text_is_one(curate, model_server):
    said = "A pattern of four letters is sought in a text of letters. At how many places of the text does it occur?"
    kept, notes, _ = crossed(curate, model_server, lambda p, b: said, crossings=["complicate"], candidates=1)
    assert ([row["text"] for row in kept], notes) == ([said + "\n"], {})


def test_a_field_goes_by_other_names_and_an_unknown_one_is_counted(curate, model_server):
    names = [*["Math"] * 20, "cooking", None]
    rows = [{"id": f"p{i}", "text": PROBLEM} | ({"field": name} if name else {}) for i, name in enumerate(names)]
    model_server.reply = lambda prompt, body: NEW
    report, kept = curate([("cross", {"candidates": 1})], rows, server=model_server.url)
    fields = {row["metadata"]["concept_field"] for row in kept if row["metadata"].get("field") == "Math"}
    assert fields == set(CONCEPTS) - {"mathematics"}
    notes = report.steps[-1].account.notes
    assert notes["problems of no field that has concepts: theirs may be of their own field"] == 2
