"""A judge tried before a run: what cannot be read or reached is refused, what can is left as it was."""

import json
import socket

import pytest

from nano3.config.errors import UserError
from nano3.config.rlhf import JudgeConfig
from nano3.rl.environments.base import Task, user
from nano3.rl.feedback.function import FunctionJudge
from nano3.rl.feedback.open import open_judge
from nano3.rl.feedback.trial import try_judge

from ..answering_server import server

TASKS = [("mine", Task(f"t{i}", user(f"How many are {i}?"), None)) for i in range(5)]
JUDGEMENT = json.dumps({"score_1": 5, "score_2": 2, "ranking": 1})


def tried(url, run_dir, **settings):
    judge, _ = open_judge(url, JudgeConfig(spec=url, **settings), run_dir)
    try_judge(judge, JudgeConfig(spec=url, **settings), TASKS)
    return judge


def test_a_judge_whose_every_answer_cannot_be_read_is_refused_with_what_it_says(tmp_path):
    with (
        server(lambda messages: (200, "The first one is\nbetter.")) as (url, asked),
        pytest.raises(UserError, match=r"none of 4 judgements .* the first is 'The first one is better\.'; give a --j"),
    ):
        tried(url, tmp_path / "run")
    assert len(asked) == 4
    assert not (tmp_path / "run").exists()


def test_one_answer_that_can_be_read_is_enough_and_counts_for_nothing(tmp_path):
    said = iter(["no", JUDGEMENT, "no", "no"])
    with server(lambda messages: (200, next(said))) as (url, asked):
        judge = tried(url, tmp_path / "run")
    assert (len(asked), judge.calls) == (4, 0)
    assert not (tmp_path / "run").exists()


def test_answers_are_kept_where_the_settings_name_a_file(tmp_path):
    with server(lambda messages: (200, JUDGEMENT)) as (url, asked):
        for _ in range(2):
            tried(url, tmp_path / "run", cache=str(tmp_path / "kept.jsonl"))
    assert len(asked) == 4


def test_a_server_that_is_not_there_refuses_a_question_or_lacks_the_model_is_told(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    for model in ("", "mine"):
        with pytest.raises(UserError, match=r"no answer \(.*\); is a server running there\? see --judge"):
            tried(nobody, tmp_path / "run", model=model)
    with server(lambda messages: (400, "too long")) as (url, _):
        with pytest.raises(UserError, match="HTTP 400: too long"):
            tried(url, tmp_path / "run")
        with pytest.raises(UserError, match=r"judge\.model mine: .* has no such model; it has judge"):
            tried(url, tmp_path / "run", model="mine")


def test_a_judge_that_writes_no_text_is_not_asked():
    def judge(messages, first, second):
        raise AssertionError("asked")

    try_judge(FunctionJudge(judge, "mine"), JudgeConfig(), TASKS)
