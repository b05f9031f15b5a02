"""Reasoning questions and answers: the choice of texts, the question, the answer that sees it alone."""

import json
from collections import Counter

import pytest

from nano3.config.errors import UserError
from nano3.curate.ask.answers import Answer
from nano3.curate.steps.llm.rqa import read_judgement, reasoning_tokens, speaks_of_text

from ...conftest import dropped

SENTENCE = "The flux through a closed surface is the charge inside it divided by the constant of the vacuum. "
TEXT = SENTENCE * 12
GOOD = {"level": "graduate", "artefacts": False, "correct": True, "reasoning": True, "bloom": "evaluate",
        "subject": "537"}  # fmt: skip
QUESTION = "A sphere of radius 2 m holds a charge of 3 nC. What is the flux through a cube of side 10 m around it?"


def filtered(curate, server, judgement, texts=(TEXT,), **settings):
    server.reply = lambda prompt, body: json.dumps(judgement) if isinstance(judgement, dict) else judgement
    report, kept = curate([("rqa-filter", settings)], texts, server=server.url)
    return kept, dropped(report, "rqa-filter")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"level": "Undergraduate", "bloom": "analyze"}, ""),
        ({"level": "school"}, "level too low"),
        ({"artefacts": True}, "artefacts of extraction"),
        ({"correct": False}, "not correct"),
        ({"reasoning": False}, "no reasoning in it"),
        ({"bloom": "apply"}, "too low in Bloom's taxonomy"),
        ({"bloom": "think"}, "no judgement in the reply"),
        ({"correct": "yes"}, "no judgement in the reply"),
        ({"subject": "physics"}, "no judgement in the reply"),
    ],
)
def test_texts_are_chosen_by_each_criterion_of_the_report(curate, model_server, change, reason):
    kept, reasons = filtered(curate, model_server, GOOD | change)
    assert reasons == ({reason: 1} if reason else {})
    if not reason:
        judgement = GOOD | change
        assert kept[0]["metadata"]["rqa"] == {"level": judgement["level"].lower(), "bloom": judgement["bloom"]}
        assert kept[0]["metadata"]["subject"] == "537"


def test_short_and_foreign_texts_are_not_sent(curate, model_server):
    german = "Der Fluss durch eine geschlossene Oberfläche ist die Ladung darin durch die Konstante des Vakuums. " * 12
    exactly = TEXT[:1000]
    kept, reasons = filtered(curate, model_server, GOOD, [exactly, german, exactly + "x"])
    assert [row["id"] for row in kept] == ["d2"]
    assert reasons == {"too short": 1, "not English": 1}
    assert len(model_server.prompts) == 1


def test_a_subject_that_is_known_stays(curate, model_server):
    texts = [{"text": TEXT, "subject": "519"}, TEXT + "x", {"text": TEXT + "y", "subject": None}]
    kept, _ = filtered(curate, model_server, GOOD | {"subject": "5"}, texts)
    assert [row["metadata"]["subject"] for row in kept] == ["519", "005", "005"]


@pytest.mark.parametrize(("said", "subject"), [("4.6", "004.6"), ("512.5", "512.5"), (4, "004"), ("51", "051")])
def test_a_subject_has_three_digits_before_the_point(said, subject):
    assert read_judgement(GOOD | {"subject": said})["subject"] == subject


@pytest.mark.parametrize(("key", "value"), [("level", "college"), ("bloom", "thinking")])
def test_levels_that_are_none_are_refused(curate, key, value):
    with pytest.raises(UserError, match=f"rqa-filter.{key} is '{value}'; it must be one of"):
        curate([("rqa-filter", {key: value})], ["x"])


def thought(text, reasoning="Hm.", **more):
    return {"message": {"content": text, "reasoning_content": reasoning}, "finish_reason": "stop"} | more


def asked(curate, server, said, **settings):
    server.reply = lambda prompt, body: said
    report, kept = curate([("reasoning-question", settings)], [TEXT], server=server.url)
    return kept, dropped(report, "question")


def test_a_question_stands_alone_and_its_reasoning_beside_it(curate, model_server):
    [row], _ = asked(curate, model_server, thought(QUESTION, "Gauss's law."))
    assert row["text"] == QUESTION
    assert row["id"] == "d0/question"
    assert row["metadata"]["question_reasoning"] == "Gauss's law."
    assert model_server.bodies[0]["max_tokens"] == 8192 + 1024


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (thought("NONE"), "no question in it"),
        (thought("**NONE.**"), "no question in it"),
        (thought("According to the text, what is the flux?"), "question that speaks of the text"),
        (thought(QUESTION, "thought " * 20_000), "question that took too much reasoning"),
        (thought("Wie groß ist der Fluss durch die Oberfläche, wenn die Ladung in der Kugel sich verdoppelt hat? " * 3),
         "question not English"),
        (thought(QUESTION, finish_reason="length"), "answer cut"),
    ],
)  # fmt: skip
def test_other_questions_are_dropped(curate, model_server, said, reason):
    kept, reasons = asked(curate, model_server, said)
    assert (kept, reasons) == ([], {reason: 1})
    assert len(model_server.prompts) == 1, "a question that is cut is not asked for with more reasoning"


@pytest.mark.parametrize(
    "question",
    [
        "What does the passage say about flux?", "In the given text, why?", "As mentioned above, what is x?",
        "Why does the author claim so?", "According to this, what follows?", "What does this short article imply?",
        "Using the excerpt, derive it.", "What is described in the paragraph?", "In this section, what is derived?",
        "According to the document, why?",
        "According to the reading, why?", "What does the assigned reading claim?",
    ],
)  # fmt: skip
def test_questions_that_speak_of_the_text_are_known(question):
    assert speaks_of_text(question)


@pytest.mark.parametrize(
    "question",
    [
        QUESTION, "Why does a text compress better than noise?", "What is the context of Noether's theorem?",
        "According to Newton's second law, what force acts?", "What lies above the surface?", "Which sources emit?",
        "Write a parser for a text in Python.",
        "What is the cross section of the reaction?", "How far is the source of the sound?",
        "What is the reading of the ammeter?", "Given these readings of two voltmeters, what is the resistance?",
        "What error is in the reading of the scale?",
    ],
)  # fmt: skip
def test_questions_that_stand_alone_are_not_taken_for_such(question):
    assert not speaks_of_text(question)


def test_reasoning_is_counted_by_the_server_else_by_characters():
    assert reasoning_tokens(Answer("ab", "abcdef", completion_tokens=40)) == 30
    assert reasoning_tokens(Answer("ab", "abcdefgh")) == 2
    assert reasoning_tokens(Answer("ab", "", completion_tokens=40)) == 0


@pytest.mark.parametrize("in_text", [True, False])
def test_the_answer_sees_the_question_alone(curate, model_server, in_text):
    def reply(prompt, body):
        return thought(QUESTION, "I ask.") if SENTENCE in prompt else thought("339 V m.", "Q over epsilon.")

    model_server.reply = reply
    steps = [("reasoning-question", {}), ("reasoning-answer", {"in_text": in_text})]
    _, [row] = curate(steps, [TEXT], server=model_server.url)
    question, answer = model_server.prompts
    assert SENTENCE in question
    assert answer.startswith(QUESTION)
    assert SENTENCE not in answer
    assert "I ask" not in answer
    thoughts = "<think>\nQ over epsilon.\n</think>\n\n" if in_text else ""
    assert row["text"] == f"{QUESTION}\n\n{thoughts}339 V m.\n"
    fields = {key: row["metadata"][key] for key in ("question", "reasoning", "answer", "question_reasoning")}
    assert fields == {
        "question": QUESTION, "reasoning": "Q over epsilon.", "answer": "339 V m.", "question_reasoning": "I ask.",
    }  # fmt: skip
    assert [one["parents"] for one in row["metadata"]["asked"]] == [["d0"], ["d0/question"]]


def test_seeds_are_filtered_and_drawn_the_same_at_any_number_of_tasks(curate, model_server, tmp_path):
    def reply(prompt, body):
        number = int(prompt.split("Text number ")[1].split(".")[0])
        return json.dumps(GOOD | {"subject": ["512", "537", "576"][number % 3], "correct": number % 5 != 0})

    model_server.reply = reply
    paths = []
    for i in range(4):
        paths.append(tmp_path / f"{i}.jsonl")
        rows = [{"id": f"d{n}", "text": f"Text number {n}. {TEXT}"} for n in range(i * 15, i * 15 + 15)]
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    steps = [("rqa-filter", {}), ("stratified-sample", {"n": 12, "characters": 2, "plan": "equal"})]
    kept = {}
    for tasks in (1, 3):
        _, rows = curate(steps, paths=paths, tasks=tasks, out=f"out{tasks}", server=model_server.url)
        kept[tasks] = rows
    assert Counter(row["metadata"]["stratum"] for row in kept[1]) == {"51": 4, "53": 4, "57": 4}
    assert sorted(row["id"] for row in kept[1]) == sorted(row["id"] for row in kept[3])
