"""Judges of all kinds: what they are shown, what of their output counts, and what happens when they stop."""

import importlib.metadata
import json
import sys
import types

import numpy as np
import pytest
import torch

import nano3
from nano3.client.attempts import Tries
from nano3.config.errors import UserError
from nano3.config.rlhf import JudgeConfig
from nano3.data.tasks.catalogue import find_tasks
from nano3.engine.engine import Engine
from nano3.rl.environments.base import Task, user
from nano3.rl.feedback.comparison import Comparison, JudgeStoppedError
from nano3.rl.feedback.find import find_judge
from nano3.rl.feedback.function import FunctionJudge
from nano3.rl.feedback.groups import Responses, judge_groups
from nano3.rl.feedback.local import LocalJudge, LocalSettings, open_local_judge
from nano3.rl.feedback.open import open_judge
from nano3.rl.feedback.rules import RuleJudge
from nano3.rl.feedback.server import ServerJudge

TASK = Task("t", user("How many?"), "3")
JUDGEMENT = {"score_1": 5, "score_2": 2, "ranking": 1}


def comparison(first="3", second="4", environment="generate:count"):
    return Comparison(environment, TASK, first, second)


def test_the_rule_judge_knows_right_concise_and_formed_answers():
    judge = RuleJudge()
    found = judge.compare([comparison("3", "4"), comparison("well\n3", "3"), comparison("", "1"), comparison("3", "3")])
    assert [verdict.judgement for verdict in found] == [(5, 2, 1), (4, 5, 4), (1, 2, 4), (5, 5, 3.5)]
    assert judge.calls == 4
    with pytest.raises(UserError, match="generate:tool"):
        judge.compare([comparison(environment="generate:tool")])


def test_each_group_costs_as_many_calls_as_it_has_responses():
    judge = RuleJudge()
    tasks = find_tasks("count").distinct(3)
    groups = [
        Responses("generate:count", Task(task.id, tuple(task.prompt), task.truth), [str(task.truth), "x", "", "?"][:n])
        for n, task in zip((2, 3, 4), tasks, strict=True)
    ]
    judged = judge_groups(judge, groups)
    assert judge.calls == 2 + 3 + 4
    for group in judged:
        assert group.base[0] == 5
        assert set(group.base[1:]) == {1}
        assert (group.unread, group.usable) == (0, True)


def test_every_response_is_shown_once_in_each_place():
    asked = []
    judge = FunctionJudge(lambda messages, first, second: asked.append((first, second)) or (3, 3, 3.5))
    judge_groups(judge, [Responses("e", TASK, ["a", "", "c"])])
    assert asked == [("a", ""), ("", "c"), ("c", "a")]


def test_nobody_gains_from_an_unread_verdict_and_too_many_make_a_group_useless():
    said = iter(["no", json.dumps(JUDGEMENT), (1, 1, 1), (9, 1, 1)])
    (group,) = judge_groups(FunctionJudge(lambda *_: next(said)), [Responses("e", TASK, list("abcd"))])
    # Of a to d: a has no score and d one, the lowest; b has 5 from its other comparison.
    assert group.base == [-1.5, 5, (2 + 3.5) / 2, -1.5]
    assert (group.unread, group.usable) == (2, True)
    (group,) = judge_groups(FunctionJudge(lambda *_: None), [Responses("e", TASK, list("abc"))])
    assert group.base == [3, 3, 3]
    assert not group.usable


def test_a_function_that_fails_stops_in_one_line():
    def broken(messages, first, second):
        raise RuntimeError("down\nfor good")

    with pytest.raises(JudgeStoppedError, match=r"^judge broken: RuntimeError: down for good$"):
        FunctionJudge(broken).compare([comparison()])


def test_a_served_judge_is_asked_once_for_each_and_its_reasoning_does_not_count(judge_server, tmp_path):
    def answer(text):
        if "<response_1>\nthinks\n" in text:
            return 200, f"<think>{{}} hm</think>\n{json.dumps(JUDGEMENT)}"
        if "<response_1>\nopened\n" in text:
            return 200, f"hm</think>{json.dumps(JUDGEMENT)}"
        return 200, json.dumps(JUDGEMENT) if "<response_1>\n3\n" in text else "The first one."

    with judge_server(answer) as (url, asked):
        judge = ServerJudge(url, cache=tmp_path / "judge.jsonl")
        pairs = [comparison(), comparison("other"), comparison("thinks"), comparison("opened"), comparison()]
        found = judge.compare(pairs)
        assert [verdict.judgement for verdict in found] == [(5, 2, 1), None, (5, 2, 1), (5, 2, 1), (5, 2, 1)]
        assert (judge.calls, len(asked)) == (5, 4)
        again = find_judge(url, cache=tmp_path / "judge.jsonl")
        assert again.compare(pairs) == found
        assert (again.calls, len(asked)) == (5, 4)


@pytest.mark.parametrize("status", [400, 403])
def test_a_comparison_that_the_server_refuses_is_unread_and_the_others_count(judge_server, status):
    """As one that is longer than its context, or that a filter keeps back: asking again would stop the run for good."""
    words = {400: "context\nlength exceeded", 403: "flagged by\nmoderation"}[status]
    told = f"HTTP {status}: {' '.join(words.split())}"

    def answer(text):
        return (200, json.dumps(JUDGEMENT)) if "<response_1>\n3\n" in text else (status, words)

    with judge_server(answer) as (url, _):
        judge = ServerJudge(url, tries=Tries(n=2, first_wait=0.01))
        with pytest.raises(JudgeStoppedError, match=rf"^judge .*{told}"):
            judge.compare([comparison("long"), comparison("longer")])
        assert judge.calls == 0
        found = judge.compare([comparison(), comparison("long")])
        assert [verdict.judgement for verdict in found] == [(5, 2, 1), None]
        assert told in found[1].text
        # Also where all of them are refused later on.
        assert judge.compare([comparison("long")])[0].judgement is None
        assert judge.calls == 3


def test_a_refused_key_stops_the_judge_even_after_answers(judge_server):
    keys = [(200, json.dumps(JUDGEMENT))]
    with judge_server(lambda text: keys.pop() if keys else (403, "no such key")) as (url, _):
        judge = ServerJudge(url, tries=Tries(n=2, first_wait=0.01))
        judge.compare([comparison()])
        with pytest.raises(JudgeStoppedError, match=r"^judge .*HTTP 403: no such key"):
            judge.compare([comparison("other")])


def test_an_address_that_answers_to_nothing_is_told_with_its_option():
    with pytest.raises(JudgeStoppedError, match=r"no answer .*see --judge$"):
        ServerJudge("http://127.0.0.1:9", tries=Tries(n=1)).compare([comparison()])


def test_calls_of_a_try_that_failed_do_not_count(judge_server):
    status = [500]
    with judge_server(lambda text: (status[0], json.dumps(JUDGEMENT))) as (url, _):
        judge = ServerJudge(url, tries=Tries(n=1))
        with pytest.raises(JudgeStoppedError):
            judge.compare([comparison(str(i)) for i in range(4)])
        status[0] = 200
        judge.compare([comparison(str(i)) for i in range(4)])
        assert judge.calls == 4


def test_a_function_may_give_numbers_of_numpy():
    said = np.int64(4), np.float32(2.5), np.int64(1)
    (found,) = FunctionJudge(lambda *_: said).compare([comparison()])
    assert found.judgement == (4, 2.5, 1)
    json.dumps(found.judgement)


def test_a_server_that_stops_raises_one_error_and_keeps_what_it_said(judge_server, tmp_path):
    def answer(text):
        return (200, json.dumps(JUDGEMENT)) if "<response_1>\n3\n" in text else (500, "out of\nmemory")

    with judge_server(answer) as (url, asked):
        judge = ServerJudge(url, "judge", tmp_path / "j.jsonl", workers=1, tries=Tries(n=2, first_wait=0.01))
        with pytest.raises(JudgeStoppedError, match=r"judge .*memory") as caught:
            judge.compare([comparison(), *[comparison(f"x{i}") for i in range(20)]])
        assert "\n" not in str(caught.value)
        assert len(asked) < 12  # it does not go on asking
        answer = (tmp_path / "j.jsonl").read_text("utf-8")
        assert answer.count("\n") == 1


def test_a_local_judge_reads_answers_behind_the_reasoning(tokenizer, scripted):
    def write(prompt):
        if "<response_1>\n3\n" in prompt:
            return f"hm\n</think>{json.dumps(JUDGEMENT)}"
        return "hm</think>both" if "<response_1>\n4\n" in prompt else json.dumps(JUDGEMENT)

    judge = LocalJudge(scripted(write))
    found = judge.compare([comparison(), comparison("4"), comparison("5"), comparison()])
    assert [verdict.judgement for verdict in found] == [(5, 2, 1), None, None, (5, 2, 1)]  # 5: all is reasoning
    assert [verdict.weights_version for verdict in found] == [0] * 4
    assert judge.calls == 4
    short = scripted(write)
    short.max_context = 400
    found = LocalJudge(short).compare([comparison(), comparison("x" * 5000)])
    assert [verdict.judgement for verdict in found] == [(5, 2, 1), None]
    short.max_context = 10
    with pytest.raises(UserError, match="no room for a judgement"):
        LocalJudge(short).compare([comparison()])
    # A few long ones in the midst of a run do not end it.
    short.max_context = 400
    judge = LocalJudge(short)
    judge.compare([comparison()])
    assert [verdict.judgement for verdict in judge.compare([comparison("x" * 5000)] * 2)] == [None, None]


def test_a_local_judge_draws_the_same_whatever_it_is_batched_with(tokenizer, model):
    engine = Engine(model, tokenizer, memory=1 << 26, max_context=1024)
    judge = LocalJudge(engine, LocalSettings(temperature=1.0, seed=3, max_tokens=6))
    pairs = [comparison(str(i)) for i in range(4)]
    texts = [verdict.text for verdict in judge.compare(pairs)]
    assert [judge.compare([pair])[0].text for pair in reversed(pairs)] == texts[::-1]
    assert len(set(texts)) > 1
    other = LocalJudge(engine, LocalSettings(temperature=1.0, seed=4, max_tokens=6))
    assert [verdict.text for verdict in other.compare(pairs)] != texts
    assert all(verdict.judgement is None for verdict in judge.compare(pairs))
    engine.weights_changed()
    assert [verdict.weights_version for verdict in judge.compare(pairs)] == [1] * 4


def test_a_judge_from_a_folder_keeps_to_its_memory(tokenizer, model, tmp_path):
    nano3.save(model, tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    judge, sizes = open_local_judge(tmp_path / "model", LocalSettings(memory=0.02, max_tokens=4, max_context=512))
    assert judge.engine.sizes.total_bytes <= 0.02 * (1 << 30)
    assert "judge: 0.0 M parameters" in sizes
    assert "of 512 tokens" in sizes
    assert len(judge.compare([comparison()])) == 1
    assert isinstance(find_judge(str(tmp_path / "model"), memory=0.02, max_context=512), LocalJudge)


def test_a_judge_from_a_folder_runs_where_it_is_told_to(tokenizer, model, tmp_path):
    nano3.save(model, tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    cfg = JudgeConfig(memory=0.02, max_context=512)
    judge, _ = open_judge(str(tmp_path / "model"), cfg, tmp_path, torch.device("meta"))
    assert isinstance(judge, LocalJudge)
    assert judge.engine.device.type == "meta"


def test_a_local_judge_keeps_no_states_from_comparison_to_comparison(tokenizer, model):
    """They round otherwise than what is computed anew, so a run that is resumed would get other judgements."""
    engine = Engine(model, tokenizer, memory=1 << 26, max_context=1024, snapshot_every=64)
    judge = LocalJudge(engine, LocalSettings(max_tokens=4))
    judge.compare([comparison("3" * 100), comparison("3" * 100)])
    assert len(engine.cache) == 0


@pytest.fixture
def my_judges(monkeypatch):
    class Counting:
        def __init__(self, score=3):
            self.calls, self.score = 0, score

        def compare(self, comparisons):
            self.calls += len(comparisons)
            return []

    class NotCounting:
        def compare(self, comparisons):
            return []

    module = types.ModuleType("my_judges")
    module.Counting, module.NotCounting, module.plain = Counting, NotCounting, lambda *_: (5, 2, 1)
    module.number = 3
    monkeypatch.setitem(sys.modules, "my_judges", module)
    point = importlib.metadata.EntryPoint("mine", "my_judges:plain", "nano3.judges")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point] if group == "nano3.judges" else [])


def test_judges_are_found_by_name(my_judges):
    assert isinstance(find_judge("rules"), RuleJudge)
    for spec in ("mine", "my_judges:plain"):
        assert find_judge(spec).compare([comparison()])[0].judgement == (5, 2, 1)
    assert find_judge("my_judges:Counting", score=4).score == 4
    with pytest.raises(ValueError, match="0 verdicts on 2 comparisons"):
        judge_groups(find_judge("my_judges:Counting"), [Responses("e", TASK, ["a", "b"])])


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("rule", {}, "did you mean rules"), ("nobody", {}, "module:object"), ("my_judges:nobody", {}, "imported"),
        ("no_such_module:x", {}, "imported"), ("my_judges:Counting", {"size": 1}, "size"),
        ("my_judges:NotCounting", {}, "calls"), ("my_judges:plain", {"size": 1}, "no options"),
        ("my_judges:number", {}, "no judge"), ("rules", {"size": 1}, "size"),
        ("http://127.0.0.1:1", {"size": 1}, "size"),
    ],
)  # fmt: skip
def test_what_is_no_judge_is_told_in_one_line(my_judges, spec, options, message):
    with pytest.raises(UserError, match=message) as caught:
        find_judge(spec, **options)
    assert "\n" not in str(caught.value)
