"""Long-context questions: by the same words, or by a judge behind a URL, which is asked once."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from nano3.client.attempts import Tries
from nano3.config.errors import UserError
from nano3.rl.environments.banking import Banking
from nano3.rl.environments.base import EnvironmentFaultError, Rollout
from nano3.rl.environments.judge import Judge
from nano3.rl.environments.long_context_qa import LongContextQA

from ..answering_server import server

ROWS = [{"question": "Where?", "answer": ["The city of Oslo", "Oslo"], "documents": [f"text {i}" for i in range(5)]}]


def value(environment, answer):
    return environment.verify(environment.tasks()[0], Rollout.of_text(answer)).value


def test_the_same_words():
    made = LongContextQA(ROWS)
    assert "Document 5:\ntext 4" in made.tasks()[0].messages[0]["content"]
    for right in ("Oslo", " oslo. ", "the city of Oslo!"):
        assert value(made, right) == 1.0
    for wrong in ("", "Oslo or Lima", "Lima", "x" * 50_000, ".", "the"):
        assert value(made, wrong) == 0.0
    found = LongContextQA(n=5, seed=2)
    assert found.tasks() == LongContextQA(n=5, seed=2).tasks()
    for task in found.tasks():
        assert found.verify(task, Rollout.of_text(task.truth["answers"][0])).passed


def test_a_judge_is_asked_once_and_remembered(tmp_path):
    cache = tmp_path / "verdicts.jsonl"
    with server(lambda messages: (200, "Yes." if "capital of Norway" in messages[0]["content"] else "no")) as (
        url,
        asked,
    ):
        made = LongContextQA(ROWS, judge_url=url, judge_cache=cache)
        assert value(made, "Oslo") == 1.0
        assert not asked
        for _ in range(3):
            assert value(made, "the capital of Norway") == 1.0
            assert value(made, "Lima, yes") == 0.0
        assert len(asked) == 2
        assert asked[0]["model"] == "judge"
        assert asked[0]["temperature"] == 0
        with cache.open("a") as file:
            file.write('{"key": "ha')  # a killed process
        again = LongContextQA(ROWS, judge_url=url, judge_cache=cache)
        assert value(again, "the capital of Norway") == 1.0
        assert value(again, "Bergen") == 0.0
        assert len(asked) == 3
        assert len(Judge(url, cache=cache)._known) == 3


def test_threads_with_the_same_question_ask_once():
    def slow(messages):
        time.sleep(0.2)
        return 200, "Yes."

    with server(slow) as (url, asked):
        judge = Judge(url, "judge")
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(judge.ask, ["q"] * 4 + ["r"])) == ["Yes."] * 5
        assert len(asked) == 2


def test_a_judge_that_does_not_answer_is_no_verdict():
    with server(lambda messages: (500, "broken")) as (url, _):
        judge = Judge(url, "judge", tries=Tries(n=2, first_wait=0.01))
        with pytest.raises(EnvironmentFaultError, match="broken") as caught:
            judge.ask("q")
        assert caught.value.kind == "judge"
    with server(lambda messages: (400, "too long")) as (url, asked):
        with pytest.raises(EnvironmentFaultError, match="HTTP 400: too long"):
            Judge(url, "judge").ask("q")
        assert len(asked) == 1


def test_a_customer_played_by_a_model():
    def customer(messages):
        return 200, "My PIN is 1." if messages[-1]["content"] == "What is your PIN?" else "DONE"

    with server(customer) as (url, asked):
        made = Banking(n=1, user_url=url)
        [task] = made.tasks()
        first = {"role": "assistant", "content": "What is your PIN?"}
        [said] = made.step(task, Rollout((first,)))
        assert said == {"role": "user", "content": "My PIN is 1."}
        assert made.step(task, Rollout((first, said, {"role": "assistant", "content": "Done."}))) == []
        assert [m["role"] for m in asked[-1]["messages"]] == ["system", "assistant", "user", "assistant", "user"]
        assert task.truth["situation"] in asked[-1]["messages"][0]["content"]


def test_a_customer_of_a_situation_alone_speaks_after_a_greeting():
    accounts = [{"account_id": "1", "name": "A", "pin": "0", "balance": 5, "card": "active"}]
    calls = [{"name": "check_pin", "arguments": {"account_id": "1", "pin": "0"}}]
    calls.append({"name": "set_card", "arguments": {"account_id": "1", "state": "blocked"}})
    row = {"accounts": accounts, "ground_truth": calls, "situation": "You lost your card; your PIN is 0."}
    with server(lambda messages: (200, "I lost my card.")) as (url, asked):
        made = Banking([row], user_url=url)
        [task] = made.tasks()
        assert not asked
        assert task.messages[1] == {"role": "user", "content": "Hello."}
        [said] = made.step(task, Rollout(({"role": "assistant", "content": "How can I help?"},)))
        assert said["content"] == "I lost my card."
        assert row["situation"] in asked[-1]["messages"][0]["content"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"documents": ["a"] * 4}, "4 documents"),
        ({"answer": ""}, "no column|empty answer"),
        ({"answer": "The."}, "empty"),
    ],
)
def test_rows_out_of_form_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        LongContextQA([ROWS[0] | changes])
