"""Made tasks as environments: their solutions are rewarded, and what is held out is never trained on."""

import itertools
import json
import random
import shutil

import pytest

from nano3.config.errors import UserError
from nano3.data.tasks.catalogue import GENERATORS, find_tasks
from nano3.rl.environments.base import MultiTurn, Rollout
from nano3.rl.environments.code import Code
from nano3.rl.environments.made import given_or_made, made_rows
from nano3.rl.environments.made_programs import code_rows, terminal_rows
from nano3.rl.environments.math import Math
from nano3.rl.environments.registry import load_environment
from nano3.rl.environments.terminal import Terminal

PROGRAMS = {"code": code_rows, "terminal": terminal_rows}
needs_bwrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
MADE = ["math", "mcq", "json_schema", "instruction_following", "workplace_assistant", "banking", "long_context_qa"]


@pytest.mark.parametrize("name", GENERATORS)
def test_solutions_are_rewarded_and_silence_is_not(name):
    made, source = load_environment(f"generate:{name}", n=5, seed=3)
    assert (made.name, source.package) == (f"generate:{name}", "nano3")
    solutions = {task.id: task.solution for task in find_tasks(f"generate:{name}", 3).distinct(5)}
    assert list(solutions) == [task.id for task in made.tasks()]
    assert isinstance(made, MultiTurn)
    for task in made.tasks():
        messages = []
        for message in solutions[task.id]:
            if message["role"] == "assistant":
                messages.append(message)
                messages += made.step(task, Rollout(tuple(messages)))
        assert messages == solutions[task.id]
        assert made.verify(task, Rollout(tuple(messages))).passed
        assert not made.verify(task, Rollout()).passed


def test_options_and_splits():
    def prompts(seed, split):
        made, _ = load_environment("generate:sort?levels=3", n=60, seed=seed, split=split)
        return {task.messages[-1]["content"] for task in made.tasks()}

    trained = prompts(0, "train") | prompts(1, "train")
    assert len(prompts(0, "train")) == 60
    assert not trained & (prompts(0, "heldout") | prompts(2, "heldout"))
    for spec, options, message in (
        ("generate:nothing", {}, "no tasks can be made"),
        ("generate:sort?levels=99", {}, "no level 99"),
        ("generate:sort", {"split": "test"}, "split is 'test'"),
        ("generate:sort", {"rows": []}, "it takes n, seed, split"),
    ):
        with pytest.raises(UserError, match=message):
            load_environment(spec, **options)


@pytest.mark.parametrize("name", [*MADE, *(pytest.param(name, marks=needs_bwrap) for name in PROGRAMS)])
def test_tasks_made_by_environments_differ_and_share_no_prompt_between_the_splits(name):
    def prompts(n, seed, split):
        tasks = load_environment(name, n=n, seed=seed, split=split)[0].tasks()
        assert len(tasks) == n
        asked = [json.dumps([task.messages, task.truth], sort_keys=True) for task in tasks]
        assert len(set(asked)) == n
        return {json.dumps(task.messages) for task in tasks}, {
            task.id: text for task, text in zip(tasks, asked, strict=True)
        }

    (first, ids), (second, other_ids) = prompts(80, 0, "train"), prompts(80, 1, "train")
    held_out, _ = prompts(12, 0, "heldout")
    assert first != second
    assert not held_out & (first | second)
    # What two seeds share has one id.
    assert all(other_ids[i] == text for i, text in ids.items() if i in other_ids)
    with pytest.raises(UserError, match="split is 'test'"):
        load_environment(name, split="test")


def test_more_tasks_than_there_are_is_told():
    def make(rng):
        while True:
            yield {"prompt": str(rng.randrange(8))}

    with pytest.raises(UserError, match=r"environment digits: only \d different train tasks"):
        made_rows(make, 9, 0, "train", "digits")


@needs_bwrap
def test_made_programs_are_solved_by_their_solutions_alone():
    made = {row["prompt"][:44]: row for row in itertools.islice(code_rows(random.Random(0)), 40)}
    rows = [{**row, "id": str(i), "tests": row["tests"][-3:]} for i, row in enumerate(made.values())]
    assert len(rows) == 6
    code = Code(rows, seconds_a_test=20.0)
    answers = [f"```python\n{row['solution']}\n```" for row in rows]
    for task, right, wrong in zip(code.tasks(), answers, answers[1:] + answers[:1], strict=True):
        assert code.verify(task, Rollout.of_text(right)).value == 1.0, task
        assert int(task.id) > 1 or code.verify(task, Rollout.of_text(wrong)).value == 0.0, task


@needs_bwrap
def test_made_chores_are_done_by_their_solutions_alone():
    rows = [{"id": str(i), **row} for i, row in enumerate(itertools.islice(terminal_rows(random.Random(5)), 16))]
    terminal = Terminal(rows, seconds=30.0)
    for task, row in zip(terminal.tasks(), rows, strict=True):
        for command, value in ((row["solution"], 1.0), ("ls", 0.0))[: 1 + (int(row["id"]) < 4)]:
            call = {"id": "0", "type": "function", "function": {"name": "run", "arguments": {"command": command}}}
            said = Rollout(({"role": "assistant", "content": "", "tool_calls": [call]},))
            assert terminal.verify(task, said).value == value, row


def test_given_rows_are_parted_by_their_prompts():
    rows = [{"id": str(i), "prompt": f"{i // 2} + 1?", "answer": str(i // 2 + 1)} for i in range(400)]
    parts = {
        split: {task.messages[0]["content"] for task in Math(rows, split=split).tasks()}
        for split in ("train", "heldout")
    }
    assert len(Math(rows).tasks()) == 400
    assert not parts["train"] & parts["heldout"]
    assert len(parts["train"]) + len(parts["heldout"]) == 200
    assert 5 < len(parts["heldout"]) < 45
    with pytest.raises(UserError, match="none of the 1 rows is in the split heldout"):
        Math([{"prompt": "2?", "answer": "2"}], split="heldout")
    with pytest.raises(UserError, match="split is 'test'"):
        given_or_made(rows, code_rows, 3, 0, "test", "math")
