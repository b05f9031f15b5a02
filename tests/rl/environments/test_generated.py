"""Made tasks as environments: their solutions are rewarded, and what is held out is never trained on."""

import json

import pytest

from nano3.config.errors import UserError
from nano3.data.tasks.catalogue import GENERATORS, find_tasks
from nano3.rl.environments.base import MultiTurn, Rollout
from nano3.rl.environments.made import made_rows
from nano3.rl.environments.registry import load_environment

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


@pytest.mark.parametrize("name", MADE)
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
