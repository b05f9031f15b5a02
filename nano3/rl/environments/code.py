"""Programs in Python against tests, in the sandbox; what is expected never enters it, and only digests come out."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.data.tasks.source import Split
from nano3.reading import parse_json
from nano3.rl.environments.base import NOTHING, EnvironmentFaultError, Reward, Rollout, Task, check_ids
from nano3.rl.environments.made import given_or_made
from nano3.rl.environments.made_programs import code_rows
from nano3.rl.environments.rows import Row, column, task_of
from nano3.sandbox import code_driver
from nano3.sandbox.limits import Limits, SandboxError
from nano3.sandbox.sandbox import Sandbox

MOST_TESTS = 50
"""Of a task (report section 3.2); further ones are left out."""
LONGEST = 100_000
"""Characters of a program."""
_BLOCK = re.compile(r"```(?:python|py|python3)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
DRIVER = Path(code_driver.__file__)
WALL = 5
"""Times its CPU time that a program may take by the clock, so that a busy machine does not make a right one wrong."""


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
        n: int = 200,
        seed: int = 0,
        split: Split | None = None,
        seconds_a_test: float = 4.0,
        seconds: float = 60.0,
        limits: Limits | None = None,
    ) -> None:
        """
        Args:
            rows: a jsonl file or its rows; None: small programs made here.
            n, seed: of those.
            split: train or heldout, which share no prompt; None: train of made ones, all of given ones.
            seconds_a_test, seconds: CPU time for one test, and for all of an answer's.
            limits: of the sandbox, its times apart.

        Raises:
            UserError: a row without tests, or with a longer output than a program may write.
            SandboxError: this machine cannot hold programs in.
        """
        found = given_or_made(rows, code_rows, n, seed, split, self.name, lambda row: row["prompt"])
        limits = limits or Limits()
        where = "environment code, row"
        self._tasks = [_task(row, f"{where} {i + 1}", limits.file_bytes) for i, row in enumerate(found)]
        check_ids(self._tasks, self.name)
        # The driver bounds the CPU time of the programs; its own is a part of this.
        self._sandbox = Sandbox(replace(limits, seconds=WALL * seconds, cpu_seconds=math.ceil(seconds) + 2))
        self._seconds = [seconds_a_test, seconds, WALL]

    def tasks(self) -> Sequence[Task]:
        """All."""
        return self._tasks

    def verify(self, task: Task, rollout: Rollout) -> Reward:
        """1 where all tests pass, else 0."""
        program = last_program(rollout.answer)
        if not program or len(program) > LONGEST:
            return NOTHING
        questions = [{k: v for k, v in test.items() if k in ("stdin", "call")} for test in task.truth]
        asked = json.dumps([*self._seconds, questions]).encode()
        files = {"solution.py": program.encode(errors="replace")}
        try:
            done = self._sandbox.run_python(DRIVER.read_text("utf-8"), files=files, stdin=asked)
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
    if "stdout" in test:
        wanted = code_driver.digest_of_lines(io.StringIO(test["stdout"], newline=None))
    else:
        wanted = _digest_of_result(test["result"], "environment code")
    return result == [0, wanted]


def _digest_of_result(result: Any, where: str) -> str:
    try:
        return code_driver.digest_of_value(json.dumps(result))
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: the result of a call is no JSON value: {error}") from error


def _task(row: Row, where: str, most_bytes: int) -> Task:
    tests = column(row, "tests", "unit_tests", where=where)
    tests = parse_json(tests) if isinstance(tests, str) else tests
    if isinstance(tests, Mapping) and "inputs" in tests:  # APPS and NeMo Gym: columns instead of rows
        tests = [{"stdin": i, "stdout": o} for i, o in zip(tests["inputs"], tests["outputs"], strict=True)]
    if not isinstance(tests, Sequence) or isinstance(tests, str) or not tests:
        raise UserError(f"{where}: tests is no list of tests")
    found = [_test(test, where) for test in tests[:MOST_TESTS]]
    longest = max(len(test.get("stdout", "").encode(errors="replace")) for test in found)
    if longest > most_bytes:
        raise UserError(
            f"{where}: a test expects {longest:,} bytes of output, and a program may write {most_bytes:,}: raise "
            "file_bytes of the limits, or leave the row out"
        )
    return task_of(row, found, where)


def _test(test: Any, where: str) -> dict[str, Any]:
    if isinstance(test, Mapping):
        stdin, stdout = test.get("stdin", test.get("input")), test.get("stdout", test.get("output"))
        if isinstance(stdout, str):
            return {"stdin": stdin or "", "stdout": stdout}
        if isinstance(test.get("call"), str) and "result" in test:
            _digest_of_result(test["result"], where)
            return {"call": test["call"], "result": test["result"]}
    raise UserError(f"{where}: a test has stdin and stdout, or call and result")
