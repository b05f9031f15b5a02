"""Rows of tasks in the three layouts, for every environment that takes rows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nano3.rl.environments.registry import load_environment
from nano3.rl.environments.rows import find_column, read_rows, task_of
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
NAMES = ("math", "mcq", "json_schema", "instruction_following", "code", "formal_proof")


@fuzz(5)
@given(data=st.sampled_from(ROWS).flatmap(files))
@pytest.mark.parametrize("name", NAMES)
def test_an_environment_takes_rows_or_tells(tmp_path_factory, name, data):
    file = tmp_path_factory.getbasetemp() / f"{name}.jsonl"
    file.write_bytes(data)
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
