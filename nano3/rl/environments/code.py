"""Programs in Python against tests, in the sandbox; what is expected never enters it."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.reading import parse_json
from nano3.rl.environments.base import NOTHING, EnvironmentFaultError, Reward, Rollout, Task, check_ids
from nano3.rl.environments.rows import Row, column, read_rows, task_of
from nano3.rl.sandbox.limits import Limits, SandboxError
from nano3.rl.sandbox.sandbox import Sandbox

MOST_TESTS = 50
"""Of a task (report section 3.2); further ones are left out."""
LONGEST = 100_000
"""Characters of a program."""
_BLOCK = re.compile(r"```(?:python|py|python3)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
DRIVER = """
import json, subprocess, sys
seconds, tests = json.load(sys.stdin)
CALL = (
    "import json, sys\\n"
    "names = {'__name__': 'solution'}\\n"
    "exec(compile(open('solution.py').read(), 'solution.py', 'exec'), names)\\n"
    "print('\\\\n' + json.dumps(eval(sys.argv[1], names)))"
)
for test in tests:
    own = [CALL, test["call"]] if "call" in test else None
    command = [sys.executable, "-I", *(["-c", *own] if own else ["solution.py"])]
    try:
        done = subprocess.run(command, input=test.get("stdin", ""), capture_output=True, text=True, timeout=seconds)
        result = [done.returncode, done.stdout[:200000], done.stderr[-500:]]
    except subprocess.TimeoutExpired:
        result = [124, "", "no end in time"]
    except Exception as error:
        result = [125, "", type(error).__name__]
    print(json.dumps(result), flush=True)
    if result[0]:
        break
"""
"""Runs in the sandbox, a process a test, up to the first that fails by itself; prints what each put out, a line each.
The program can reach it, but does not know what it would have to print."""


class Code:
    """The last Python block of the answer passes all tests: 1, else 0.

    Columns: a prompt, and `tests` (also `unit_tests`): a list, as JSON values or text, of {"stdin", "stdout"} (a
    program; also "input" and "output") and {"call", "result"} (an expression with its functions, and the JSON value
    that it has).
    """

    name = "code"

    def __init__(
        self,
        rows: str | Path | Iterable[Row] | None = None,
        seconds_a_test: float = 4.0,
        seconds: float = 60.0,
        limits: Limits | None = None,
    ) -> None:
        """
        Args:
            rows: a jsonl file or its rows; None: a few small tasks.
            seconds_a_test, seconds: for one test, and for all of an answer's.
            limits: of the sandbox, its time apart.

        Raises:
            UserError: a row without tests.
            SandboxError: this machine cannot hold programs in.
        """
        found = BUILT_IN if rows is None else read_rows(rows)
        self._tasks = [_task(row, f"environment code, row {i + 1}") for i, row in enumerate(found)]
        check_ids(self._tasks, self.name)
        self._sandbox = Sandbox(replace(limits or Limits(), seconds=seconds))
        self._seconds_a_test, self._lock = seconds_a_test, threading.Lock()

    def tasks(self) -> Sequence[Task]:
        """All."""
        return self._tasks

    def verify(self, task: Task, rollout: Rollout) -> Reward:
        """1 where all tests pass, else 0."""
        program = last_program(rollout.answer)
        if not program or len(program) > LONGEST:
            return NOTHING
        questions = [{k: v for k, v in test.items() if k in ("stdin", "call")} for test in task.truth]
        asked = json.dumps([self._seconds_a_test, questions]).encode()
        files = {"solution.py": program.encode(errors="replace")}
        try:
            done = self._sandbox.run_python(DRIVER, files=files, stdin=asked)
        except SandboxError as error:
            raise EnvironmentFaultError("sandbox", str(error)) from error
        results = _results(done.stdout)
        passed = [_passes(test, result) for test, result in zip(task.truth, results, strict=False)]
        right = len(passed) == len(task.truth) and all(passed)
        return Reward(float(right), right, {"tests": len(task.truth), "passed": sum(passed), "end": done.end})


def last_program(text: str) -> str:
    """The last fenced block of Python in an answer; "" where there is none."""
    found = _BLOCK.findall(text)
    return found[-1].strip() if found else ""


def _results(output: bytes) -> list[Any]:
    """What the driver printed, as far as it reads."""
    found = []
    for line in output.splitlines():
        try:
            found.append(parse_json(line))
        except ValueError:
            break
    return found


def _passes(test: Mapping[str, Any], result: Any) -> bool:
    if not (isinstance(result, list) and len(result) == 3 and result[0] == 0 and isinstance(result[1], str)):
        return False
    if "stdout" in test:
        return _lines(result[1]) == _lines(test["stdout"])
    try:
        return _same(parse_json(result[1].rstrip("\n").rpartition("\n")[2]), test["result"])
    except ValueError:
        return False


def _same(found: Any, wanted: Any) -> bool:
    """Equal JSON values; true is not 1."""
    return found == wanted and json.dumps(found, sort_keys=True) == json.dumps(wanted, sort_keys=True)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _task(row: Row, where: str) -> Task:
    tests = column(row, "tests", "unit_tests", where=where)
    tests = parse_json(tests) if isinstance(tests, str) else tests
    if isinstance(tests, Mapping) and "inputs" in tests:  # APPS and NeMo Gym: columns instead of rows
        tests = [{"stdin": i, "stdout": o} for i, o in zip(tests["inputs"], tests["outputs"], strict=True)]
    if not isinstance(tests, Sequence) or isinstance(tests, str) or not tests:
        raise UserError(f"{where}: tests is no list of tests")
    return task_of(row, [_test(test, where) for test in tests[:MOST_TESTS]], where)


def _test(test: Any, where: str) -> dict[str, Any]:
    if isinstance(test, Mapping):
        stdin, stdout = test.get("stdin", test.get("input")), test.get("stdout", test.get("output"))
        if isinstance(stdout, str):
            return {"stdin": stdin or "", "stdout": stdout}
        if isinstance(test.get("call"), str) and "result" in test:
            return {"call": test["call"], "result": test["result"]}
    raise UserError(f"{where}: a test has stdin and stdout, or call and result")


BUILT_IN: list[Row] = [
    {
        "id": "double",
        "prompt": "Write a Python program that reads a number and prints its double. Put it in a ```python block.",
        "tests": [{"stdin": f"{n}\n", "stdout": f"{2 * n}\n"} for n in (0, 1, -5, 1234)],
    },
    {
        "id": "reverse-words",
        "prompt": "Write a Python program that reads a line and prints its words backward, in a ```python block.",
        "tests": [{"stdin": "a b c\n", "stdout": "c b a"}, {"stdin": "one\n", "stdout": "one"}],
    },
    {
        "id": "digits",
        "prompt": "Write a Python function digits(n) that returns the sum of the digits of n, in a ```python block.",
        "tests": [{"call": f"digits({n})", "result": sum(map(int, str(n)))} for n in (0, 7, 91, 123456)],
    },
]
