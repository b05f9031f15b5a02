"""Programs in two languages, run side by side in the sandbox."""

import json
import shutil

import pytest
from datatrove.data import Document

from nano3.curate.step import Context
from nano3.curate.steps.llm.rewrite_gate import ORIGINAL
from nano3.curate.steps.llm.same_output import SameOutput, SameOutputSettings, read_tests

needs_bwrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
PYTHON = "print(int(input()) // 3)\n"
HEAD = '#include <cstdio>\nint main() { long n; scanf("%ld", &n); '
RIGHT = HEAD + 'printf("%ld \\n\\n", n >= 0 ? n / 3 : -((2 - n) / 3)); }'
ROUNDS_TO_ZERO = HEAD + 'printf("%ld", n / 3); }'
FAILS = HEAD + 'printf("%ld", n / 3); return 1; }'
UNDEFINED = "int f(); int main() { return f(); }"
TESTS = [{"stdin": "7", "stdout": "2\n"}, {"stdin": "-7"}]


def judged(tmp_path, programs):
    """Reason by id; empty: kept."""
    gate = SameOutput(SameOutputSettings(), Context("01-same-output", tmp_path, 1))
    documents = [
        Document(cpp, name, metadata={ORIGINAL: python, "tests": tests})
        for name, (python, cpp, tests) in programs.items()
    ]
    kept = {one.id: one.metadata.get("tests_passed", 0) for one in gate.run(iter(documents))}
    account = json.loads((tmp_path / "accounts/01-same-output/00000.json").read_text())
    reasons = {one["id"]: reason for reason, found in account["dropped"].items() for one in found["samples"]}
    return kept, reasons, account["notes"]


@needs_bwrap
def test_only_programs_that_write_the_same_are_kept(tmp_path):
    kept, reasons, notes = judged(tmp_path, {
        "right": (PYTHON, RIGHT, TESTS),
        "tests as text": (PYTHON, RIGHT, json.dumps(TESTS[:1])),
        "rounds to zero": (PYTHON, ROUNDS_TO_ZERO, TESTS),
        "ends with an error": (PYTHON, FAILS, TESTS[:1]),
        "does not link": (PYTHON, UNDEFINED, TESTS[:1]),
        "wrong python": (PYTHON, RIGHT, [{"stdin": "7", "stdout": "3"}]),
        "no tests": (PYTHON, ROUNDS_TO_ZERO, None),
    })  # fmt: skip
    assert kept == {"right": 2, "tests as text": 1, "no tests": 0}
    assert reasons == {
        "rounds to zero": "another output than the Python's",
        "ends with an error": "another output than the Python's",
        "does not link": "does not compile and link",
        "wrong python": "the Python fails its tests",
    }
    assert notes == {"programs without tests, kept": 1}


@needs_bwrap
def test_a_program_cannot_reach_what_is_outside(tmp_path):
    (tmp_path / "secret").write_text("secret")
    path = json.dumps(str(tmp_path / "secret"))
    python = f"import os; print(os.path.exists({path}))"
    cpp = f'#include <cstdio>\nint main() {{ puts(fopen({path}, "r") ? "True" : "False"); }}'
    kept, _, _ = judged(tmp_path, {"a": (python, cpp, [{"stdin": "", "stdout": "False"}])})
    assert kept == {"a": 1}


@pytest.mark.parametrize("value", [None, 3, "", "[", "{}", [1, "x"], [{"call": "f(1)", "result": 2}], [{"stdin": 0.5}]])
def test_what_is_no_test_of_a_program_is_none(value):
    assert read_tests(value) == []


def test_whole_numbers_are_given_and_expected_as_they_are_written():
    assert read_tests([{"stdin": 3, "stdout": 9}, {"stdin": "x", "stdout": 0.5}]) == [("3", "9"), ("x", None)]
