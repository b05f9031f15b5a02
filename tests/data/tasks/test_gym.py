from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

import pytest

from nano3.config.errors import UserError
from nano3.data.tasks.catalogue import check, find_generator, find_tasks

installed = pytest.mark.skipif(find_spec("reasoning_gym") is None, reason="reasoning-gym is an extra")


@pytest.mark.skipif(find_spec("reasoning_gym") is not None, reason="what is said without reasoning-gym")
def test_without_the_package_its_name_is_said():
    with pytest.raises(UserError, match="pip install reasoning-gym"):
        find_generator("gym/chain_sum")


@installed
@pytest.mark.parametrize("name", ["chain_sum", "spell_backward", "letter_counting", "number_sorting"])
def test_answers_are_scored_as_reasoning_gym_scores_them(name):
    import reasoning_gym

    tasks = [t for level in (0, 1, 3) for t in find_tasks(f"generate:gym/{name}?levels={level}").tasks(5)]
    score: Any = reasoning_gym.get_score_answer_fn(name)
    for task in tasks:
        truth = json.loads(json.dumps(task.truth))
        assert check(task.generator, truth, task.solution) == 1.0
        nearly = f"x {truth['answer']}"
        expected = score(nearly, {"answer": truth["answer"], "metadata": {}}) if name == "chain_sum" else None
        given = check(task.generator, truth, [{"role": "assistant", "content": nearly}])
        assert given == expected if name == "chain_sum" else given < 1.0
    assert len({t.id for t in tasks}) > 10


@installed
def test_worked_solutions_lead_to_the_answer_and_levels_are_harder():
    tasks = list(find_tasks("generate:gym/chain_sum?levels=4").tasks(5))
    for task in tasks:
        assert task.solution[0]["reasoning_content"].split()[-1] == task.solution[0]["content"]
    lengths = [
        max(len(t.prompt[0]["content"]) for t in find_tasks(f"generate:gym/chain_sum?levels={level}").tasks(10))
        for level in (1, 4)
    ]
    assert lengths[0] < lengths[1]


@installed
def test_splits_are_apart_and_what_is_not_there_is_refused():
    train = {t.content for t in find_tasks("gym/spell_backward").tasks(100)}
    heldout = {t.content for t in find_tasks("gym/spell_backward", split="heldout").tasks(30)}
    assert not train & heldout
    with pytest.raises(UserError, match="did you mean generate:gym/chain_sum"):
        find_generator("gym/chainsum")
    task = find_tasks("gym/chain_sum").task(0)
    with pytest.raises(UserError, match="makes another"):
        check("gym/chain_sum", task.truth | {"answer": "none"}, task.solution)
