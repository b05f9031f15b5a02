"""Environments of one answer: right ones get the whole reward, wrong and adversarial ones nothing, hanging ones end."""

import importlib.util
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nano3.config.errors import UserError
from nano3.rl.environments.base import Rollout
from nano3.rl.environments.json_schema import JsonSchema
from nano3.rl.environments.math import Math, final_answer
from nano3.rl.environments.mcq import LETTERS, MultipleChoice, chosen_letter
from nano3.rl.environments.reasoning_gym import ReasoningGym

ADVERSARIAL = [
    "",
    " \n",
    "\x00",
    "x" * 200_000,
    "[" * 100_000,
    "\\boxed{" * 20_000,
    "{" * 50_000 + "}" * 50_000,
    "🦊\ud83d",
]


def value(environment, answer, task=0):
    return environment.verify(environment.tasks()[task], Rollout.of_text(answer)).value


@pytest.fixture(scope="module")
def math():
    rows = [
        {"prompt": "q", "answer": "1/2"},
        {"prompt": "q", "answer": "\\boxed{\\frac{3}{4}}"},
        {"prompt": "q", "answer": "12"},
        {"prompt": "q", "answer": "x^2 + 2x + 1"},
    ]
    return Math(rows, seconds=20.0)


@pytest.mark.parametrize(
    ("task", "answer", "right"),
    [
        (0, "so it is \\boxed{0.5}", True),
        (0, "\\boxed{\\frac{1}{2}}", True),
        (0, "\\boxed{2} no, \\boxed{1/2}", True),
        (0, "\\boxed{1/2} no, \\boxed{2}", False),
        (0, "the answer\n0.5\n", True),
        (0, "\\boxed{1/2", False),
        (1, "\\boxed{0.75}", True),
        (1, "\\boxed{0.7501}", False),
        (2, "12", True),
        (2, "\\boxed{10 + 2}", True),
        (2, "\\boxed{12, 13}", False),
        (2, "12 or 13", False),
        (2, "13", False),
        (3, "\\boxed{(x+1)^2}", True),
        (3, "\\boxed{(x+1)^3}", False),
    ],
)
def test_math(math, task, answer, right):
    assert value(math, answer, task) == float(right)


def test_math_of_a_hanging_answer_ends_and_the_next_is_measured(math):
    quick = Math([{"prompt": "q", "answer": "12"}], seconds=1.0)
    assert value(quick, "\\boxed{6 + 6}") in (0.0, 1.0)  # starts the process
    started = time.monotonic()
    assert value(quick, "\\boxed{9^{9^{9^{9}}}}") == 0.0
    assert time.monotonic() - started < 30
    assert value(math, "\\boxed{6 + 6}", 2) == 1.0


@given(st.integers(-(10**6), 10**6))
def test_the_right_number_in_a_box_is_found(number):
    assert final_answer(f"thus \\boxed{{{number}}}.") == str(number)
    assert final_answer(f"words\n  {number} \n") == str(number)


def test_multiple_choice():
    options = [f"thing {i}" for i in range(8)]
    made = MultipleChoice([{"question": "q", "options": options, "answer": answer} for answer in ("C", "thing 2", 2)])
    assert [task.truth for task in made.tasks()] == [{"letter": "C", "options": 8}] * 3
    for right in (
        "Answer: C",
        "C",
        "(C)",
        "C.",
        "\\boxed{C}",
        "A, B... The answer is (C)",
        "Answer: A. No. Answer: **C**",
        "Answer: C. That is the answer I am sure of.",
        "The answer is C, not answer X",
    ):
        assert value(made, right) == 1.0, right
    for wrong in ("Answer: D", "A B C D E F G H", "C or D", "Answer: C. Answer: D", "\\boxed{CD}", "c", "Answer: Cat"):
        assert value(made, wrong) == 0.0, wrong


@pytest.mark.parametrize("text", ["My answer I am sure of: B", "The answer is I think B"])
def test_a_pronoun_is_no_letter(text):
    assert chosen_letter(text) == ""
    assert chosen_letter("Answer: I") == chosen_letter("The answer is (I).") == "I"
    assert chosen_letter("Answer: I", LETTERS[:8]) == ""


def test_multiple_choice_in_nemo_gyms_columns():
    options = [{LETTERS[i]: f"thing {i}"} for i in range(8)]
    prompt = {"input": [{"role": "user", "content": "Which? A: ..."}]}
    made = MultipleChoice([{"responses_create_params": prompt, "options": options, "expected_answer": "D"}])
    assert made.tasks()[0].messages[0]["content"] == "Which? A: ..."
    assert value(made, "\\boxed{D}") == 1.0


@pytest.mark.parametrize("n", [2, 7, 27])
def test_too_few_options_are_refused(n):
    with pytest.raises(UserError, match=f"{n} options"):
        MultipleChoice([{"question": "q", "options": list(range(n)), "answer": "A"}])
    with pytest.raises(UserError, match="none of its options"):
        MultipleChoice([{"question": "q", "options": list(range(8)), "answer": "I"}])


@given(st.sampled_from(LETTERS), st.text(st.characters(blacklist_categories=("Lu", "Cs")), max_size=30))
@settings(deadline=None)
def test_a_letter_after_answer_is_chosen_whatever_stands_before(letter, before):
    assert chosen_letter(f"{before}\nAnswer: {letter}") == letter


SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 3}, "s": {"type": "string", "pattern": "^(a+)+$"}},
    "required": ["n"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def schema():
    return JsonSchema([{"schema": json.dumps(SCHEMA)}, {"prompt": "q", "schema": {"$ref": "http://localhost:1/x"}}])


def test_json_for_a_schema(schema):
    assert json.dumps(SCHEMA) in schema.tasks()[0].messages[0]["content"]
    for right in ('{"n": 3}', ' {"n": 4, "s": "aa"}\n'):
        assert value(schema, right) == 1.0, right
    wrong = [
        '{"n": 2}', '{"n": 3.5}', '{"n": 3, "x": 1}', '{"s": "a"}', "[]", "3", '{"n": 3} and', '```json\n{"n": 3}\n```',
        '{"n": 3, "n": 4}', '{"n": NaN}', '{"n": Infinity}', "{'n': 3}", '{"n": ' + "9" * 5000 + "}x",
    ]  # fmt: skip
    for answer in wrong:
        assert value(schema, answer) == 0.0, answer
    [task, _] = schema.tasks()
    assert schema.verify(task, Rollout(({"role": "assistant", "content": '{"n": 3}'},), truncated=True)).value == 0.0


def test_a_pattern_that_hangs_ends_and_what_a_schema_refers_to_is_not_fetched(schema):
    quick = JsonSchema([{"schema": SCHEMA}], seconds=1.0)
    assert value(quick, '{"n": 3, "s": "aaaa"}') == 1.0
    started = time.monotonic()
    assert value(quick, json.dumps({"n": 3, "s": "a" * 60 + "!"})) == 0.0
    assert time.monotonic() - started < 20
    assert value(schema, "3", 1) == 0.0


@pytest.mark.parametrize(
    ("package", "make"), [("math_verify", Math), ("jsonschema", JsonSchema), ("reasoning_gym", ReasoningGym)]
)
def test_a_missing_package_is_told_with_the_command_that_installs_it(monkeypatch, package, make):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest))
    with pytest.raises(UserError, match=r"is not installed: pip install .*\[rl\]"):
        make()


@pytest.mark.parametrize("wrong", ["{", "3", {"type": "nothing"}])
def test_what_is_no_schema_is_refused(wrong):
    with pytest.raises(UserError, match=r"row 1: (no JSON schema|the schema)"):
        JsonSchema([{"schema": wrong}])


@pytest.mark.slow
def test_reasoning_gym_keeps_partial_credit():
    made = ReasoningGym(["chain_sum"], n=2, seed=3, config={"min_terms": 2, "max_terms": 2}, seconds=60.0)
    assert made.tasks() == ReasoningGym("chain_sum", n=2, seed=3, config={"min_terms": 2, "max_terms": 2}).tasks()
    task = made.tasks()[0]
    a, sign, b = task.messages[0]["content"].split(":")[1].split("=")[0].split()
    right = str(int(a) + int(b) if sign == "+" else int(a) - int(b))
    assert made.verify(task, Rollout.of_text(f"<answer>{right}</answer>")).passed
    assert made.verify(task, Rollout.of_text(right)).value == 1.0
    part = made.verify(task, Rollout.of_text(f"x {right}"))
    assert 0 < part.value < 1
    assert part.passed is False
    for wrong in ("", "nothing", "9" * 400):
        assert made.verify(task, Rollout.of_text(wrong)).value < 0.1
    with pytest.raises(UserError, match="no_such_task"):
        ReasoningGym("no_such_task", n=1)


@pytest.mark.slow
def test_reasoning_gym_shares_no_question_between_the_splits():
    def questions(n, **options):
        tasks = ReasoningGym("chain_sum", n=n, config={"max_terms": 2, "max_digits": 1}, **options).tasks()
        found = {task.messages[0]["content"] for task in tasks}
        assert len(found) == len(tasks) == n
        return found

    trained = questions(60, seed=0) | questions(60, seed=1)
    assert not trained & (questions(8, seed=0, split="heldout") | questions(8, seed=7, split="heldout"))
    with pytest.raises(UserError, match=r"chain_sum has only \d+ different heldout entries"):
        questions(100, split="heldout")
    with pytest.raises(UserError, match="split is 'test'"):
        questions(1, split="test")


@pytest.mark.parametrize("answer", ADVERSARIAL, ids=range(len(ADVERSARIAL)))
def test_adversarial_answers_get_nothing(math, schema, answer):
    for environment in (math, schema, MultipleChoice(n=1)):
        assert value(environment, answer) == 0.0
