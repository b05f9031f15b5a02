"""The judge's own training: preference pairs as tasks, rewarded by Equation 1."""

import json

import pytest

from nano3.config.errors import UserError
from nano3.rl.environments.base import Rollout
from nano3.rl.environments.registry import load_environment

ROW = {"prompt": "Hi", "response_1": "a", "response_2": "b", "score_1": 5, "score_2": 2, "ranking": 1}


def said(*judgement, **more):
    content = json.dumps(dict(zip(("score_1", "score_2", "ranking"), judgement, strict=True)))
    return Rollout(({"role": "assistant", "reasoning_content": "because {}", "content": content},), **more)


def test_the_reward_is_equation_1_and_swaps_with_the_pair():
    made, source = load_environment("genrm", rows=[ROW])
    assert source.package == "nano3"
    there, back = made.tasks()
    assert there.messages[0]["content"].index("\na\n") < there.messages[0]["content"].index("\nb\n")
    assert back.messages[0]["content"].index("\nb\n") < back.messages[0]["content"].index("\na\n")
    for task, right, off in ((there, (5, 2, 1), (4, 3, 3)), (back, (2, 5, 6), (3, 4, 4))):
        best, worse = made.verify(task, said(*right)), made.verify(task, said(*off))
        assert (best.value, best.passed) == (0, True)
        assert (worse.value, worse.passed) == (-4, True)
        assert [worse.parts[f"error_{name}"] for name in ("score_1", "score_2", "ranking")] == [1, 1, 2]
        upside_down = made.verify(task, said(right[1], right[0], 7 - right[2]))
        assert (upside_down.value, upside_down.passed) == (-11, False)


def test_what_is_no_judgement_violates_the_format_and_is_as_far_as_can_be():
    made, _ = load_environment("genrm", rows=[ROW], c1=20, c2=2)
    task = made.tasks()[0]
    for rollout in (Rollout(), Rollout.of_text("good"), said(5, 2, 7), said(5, 2, 1, truncated=True)):
        reward = made.verify(task, rollout)
        assert (reward.value, reward.passed) == (-20 - 4 - 3 - 2 * 5, False)
        assert reward.parts["format_ok"] is False


def test_a_tie_is_judged_as_one():
    made, _ = load_environment("genrm", rows=[ROW | {"score_1": 2, "ranking": 3.5}], swap=False)
    (task,) = made.tasks()
    for ranking in (3, 4):
        reward = made.verify(task, said(2, 2, ranking))
        assert (reward.value, reward.passed) == (-0.5, True)
    assert not made.verify(task, said(3, 2, 3)).passed


def test_made_pairs_come_in_both_orders_and_held_out_apart(tmp_path):
    train, _ = load_environment("genrm", n=30)
    heldout, _ = load_environment("genrm", n=30, split="heldout", swap=False)
    assert len(train.tasks()) == 2 * len(heldout.tasks()) == 60
    prompts = [
        {task.messages[0]["content"].partition("<response_1>")[0] for task in e.tasks()} for e in (train, heldout)
    ]
    assert not prompts[0] & prompts[1]

    rows = [ROW | {"prompt": f"prompt {i}"} for i in range(100)]
    sides = [load_environment("genrm", rows=rows, split=split)[0].tasks() for split in ("train", "heldout")]
    assert sum(map(len, sides)) == 200
    assert 2 <= len(sides[1]) <= 60
    assert not {task.messages[0]["content"] for task in sides[0]} & {task.messages[0]["content"] for task in sides[1]}
    with pytest.raises(UserError, match="split is 'test'"):
        load_environment("genrm", rows=rows, split="test")


def test_files_are_read_and_bad_rows_named(tmp_path):
    path = tmp_path / "prefs.jsonl"
    path.write_text(f"{json.dumps(ROW)}\n{json.dumps(ROW)}\n", "utf-8")
    assert len(load_environment("genrm", rows=path)[0].tasks()) == 2
    path.write_text(f"{json.dumps(ROW)}\n{json.dumps(ROW | {'ranking': 9})}\n", "utf-8")
    with pytest.raises(UserError, match=r"prefs\.jsonl:2: ranking is 9"):
        load_environment("genrm", rows=path)
    with pytest.raises(UserError, match="row 1: response_1 is missing"):
        load_environment("genrm", rows=[{"prompt": "x", "ranking": 1}])
