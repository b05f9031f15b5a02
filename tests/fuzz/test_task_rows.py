"""Rows of tasks in the three layouts, for every environment that takes rows."""

from __future__ import annotations

from itertools import islice
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nano3.data.preferences.layouts import read_pairs
from nano3.rl.environments import banking
from nano3.rl.environments.registry import load_environment
from nano3.rl.environments.rows import find_column, read_rows, task_of
from nano3.rl.environments.workplace import environment as workplace
from tests.fuzz.inputs import files, fuzz, works_or_tells

TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
OPTIONS = [f"option {i}" for i in range(10)]
ROWS = [
    {"id": "a", "prompt": "What is 1 + 1?", "answer": "2", "tools": [TOOL], "info": '{"answer": "2"}'},
    {"prompt": [{"role": "user", "content": "What?"}], "answer": 3, "options": OPTIONS, "metadata": {"answer": "2"}},
    {"responses_create_params": {"input": [{"role": "user", "content": "Say it"}], "tools": [TOOL["function"]]},
     "expected_answer": "A", "options": [{"A": "x"}] * 8, "schema_str": '{"type": "object"}',
     "instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": ["a"]}], "verifier_metadata": {}},
    {"question": "Write f", "answer": "0", "options": OPTIONS,
     "info": {"schema": {"type": "object"}, "unit_tests": {"inputs": [], "outputs": []}}},
]  # fmt: skip
PREFERENCES = [
    {"prompt": "Which?", "response_1": "a", "response_2": "b", "score_1": 4, "score_2": 2, "ranking": 2},
    {"context": [{"role": "user", "content": "Which?"}], "response1": "a", "response2": "b", "overall_preference": -1,
     "individual_preference": [{"score": -1, "reasoning": "short"}]},
    {"prompt": "Which?<extra_id_1>Assistant\na", "response_1": "a", "response_2": "b", "preference_strength": 3},
    {"prompt": "Which?", "response": "a", "helpfulness": 3},
]  # fmt: skip
ROWS_OF = {
    "workplace_assistant": list(islice(workplace._made(Random(0)), 8)),
    "banking": list(islice(banking._made(Random(0)), 4)),
    "genrm": PREFERENCES,
}
NAMES = ("math", "mcq", "json_schema", "instruction_following", "code", "formal_proof", *ROWS_OF)


@fuzz(5)
@given(data=st.data())
@pytest.mark.parametrize("name", NAMES)
def test_an_environment_takes_rows_or_tells(tmp_path_factory, name, data):
    file = tmp_path_factory.getbasetemp() / f"{name}.jsonl"
    file.write_bytes(data.draw(st.sampled_from(ROWS_OF.get(name, ROWS)).flatmap(files)))
    with works_or_tells(f"rows of {name}"):
        load_environment(name, rows=str(file))


@fuzz(25)
@given(data=st.sampled_from(ROWS).flatmap(files))
def test_a_row_becomes_a_task_or_is_told(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "rows.jsonl"
    file.write_bytes(data)
    with works_or_tells("task rows"):
        for row in read_rows(file):
            find_column(row, "answer")
            task = task_of(row, None, "row 1")
            assert all(isinstance(tool, dict) and isinstance(tool["function"], dict) for tool in task.tools)


@fuzz(25)
@given(rows=st.lists(st.sampled_from(PREFERENCES).flatmap(files), min_size=1, max_size=3))
def test_preferences_are_read_or_told(tmp_path_factory, rows):
    file = tmp_path_factory.getbasetemp() / "preferences.jsonl"
    file.write_bytes(b"\n".join(rows))
    with works_or_tells("preferences"):
        list(read_pairs(str(file), lambda name, why: None))
    with works_or_tells("preferences without a row left out"):
        list(read_pairs(str(file)))
