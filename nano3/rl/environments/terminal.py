"""Tasks at a shell in the sandbox; what counts is which files there are in the end."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.rl.environments.base import (
    EnvironmentFaultError,
    Message,
    Reward,
    Rollout,
    Task,
    all_or_nothing,
    check_ids,
    tool_results,
)
from nano3.rl.environments.rows import Row, column, id_of, prompt_of, read_rows
from nano3.rl.sandbox.limits import MIB, Limits, SandboxError
from nano3.rl.sandbox.sandbox import Sandbox

SYSTEM = "You work at a shell. Each command starts in the same folder, in a new shell; files stay. Say when it is done."
SHOWN = 4000
"""Characters of a command's output that the model is shown."""
MOST_COMMANDS, KEPT = 30, 256
TOOL = {
    "type": "function",
    "function": {
        "name": "run",
        "description": "Run a shell command (sh) and see its output and exit status.",
        "parameters": {
            "type": "object",
            "properties": {"command": {"type": "string", "description": "the command"}},
            "required": ["command"],
        },
    },
}
Files = Mapping[str, bytes]


class Terminal:
    """1 where the working folder's files are in the end as they should be, else 0.

    Columns: a prompt; `files`: path to text at the start; `expected`: path to text in the end, null for a file that
    must be gone. Files that `expected` does not name may be anything.
    """

    name = "terminal"

    def __init__(
        self, rows: str | Path | Iterable[Row] | None = None, seconds: float = 10.0, limits: Limits | None = None
    ) -> None:
        """
        Args:
            rows: a jsonl file or its rows; None: a few small tasks.
            seconds: for one command; one that is killed changes nothing.
            limits: of the sandbox.

        Raises:
            UserError: a row without expected files, or that is right at the start.
            SandboxError: this machine cannot hold programs in.
        """
        found = BUILT_IN if rows is None else read_rows(rows)
        where = f"environment {self.name}"
        self._tasks = check_ids([_task(row, f"{where}, row {i + 1}") for i, row in enumerate(found)], self.name)
        self._sandbox = Sandbox(replace(limits or Limits(folder_bytes=8 * MIB), seconds=seconds))
        self._known: OrderedDict[str, tuple[Files, str]] = OrderedDict()
        self._lock = threading.Lock()

    def tasks(self) -> Sequence[Task]:
        """All."""
        return self._tasks

    def step(self, task: Task, rollout: Rollout) -> Sequence[Message]:
        """Output of the commands."""
        last = rollout.messages[-1] if rollout.messages else {}
        calls = last.get("tool_calls") or ()
        return tool_results(last, self._play(task, rollout)[1][-len(calls) :]) if calls else []

    def verify(self, task: Task, rollout: Rollout) -> Reward:
        """By the files that the rollout's commands leave, run again from the start."""
        files, _ = self._play(task, rollout)
        return all_or_nothing(_as_expected(files, task.truth["expected"]), commands=len(rollout.calls))

    def _play(self, task: Task, rollout: Rollout) -> tuple[Files, list[str]]:
        """Files after all commands of a rollout, and what each of them put out."""
        files: Files = {path: text.encode() for path, text in task.truth["files"].items()}
        outputs = []
        for number, (name, arguments) in enumerate(rollout.calls):
            command = (arguments or {}).get("command")
            if name != "run" or not isinstance(command, str) or "\0" in command:
                outputs.append("Error: call run with a command")
            elif number >= MOST_COMMANDS:
                outputs.append(f"Error: more than {MOST_COMMANDS} commands")
            else:
                files, output = self._run(files, command)
                outputs.append(output)
        return files, outputs

    def _run(self, files: Files, command: str) -> tuple[Files, str]:
        """Files after a command, and its output; what was run before on the same files is remembered."""
        parts = [command, {path: base64.b64encode(content).decode() for path, content in files.items()}]
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        found = self._ran(files, command)
        with self._lock:
            self._known[key] = found
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        return found

    def _ran(self, files: Files, command: str) -> tuple[Files, str]:
        text = command.encode(errors="replace").decode()
        try:
            # Both in one stream, in the order in which they were written.
            done = self._sandbox.run(
                ["/bin/sh", "-c", 'exec 2>&1; eval "$1"', "sh", text], files=files, keep_files=True
            )
        except SandboxError as error:
            raise EnvironmentFaultError("sandbox", str(error)) from error
        output = done.stdout.decode(errors="replace")
        output = output if len(output) <= SHOWN else output[:SHOWN] + " ... (cut off)"
        if done.end != "exited" or done.files_error:
            why = {"timeout": "killed: it took too long", "output": "killed: it wrote too much"}
            return files, f"{output}\n({why.get(done.end, done.files_error)}; the files are as before it)"
        return done.files, f"{output}(exit status {done.code})"


def _as_expected(files: Files, expected: Mapping[str, str | None]) -> bool:
    for path, text in expected.items():
        found = files.get(path)
        if (text is None) != (found is None) or (text is not None and found != text.encode()):
            return False
    return True


def _task(row: Row, where: str) -> Task:
    files = {str(path): str(text) for path, text in (row.get("files") or {}).items()}
    expected: Any = column(row, "expected", "expected_files", where=where)
    if not isinstance(expected, Mapping) or not expected:
        raise UserError(f"{where}: expected is no object of paths and texts")
    if _as_expected({path: text.encode() for path, text in files.items()}, expected):
        raise UserError(f"{where}: the files are as expected at the start, so doing nothing would be rewarded")
    messages = ({"role": "system", "content": SYSTEM}, *prompt_of(row, where))
    return Task(id_of(row), messages, {"files": files, "expected": dict(expected)}, (TOOL,))


BUILT_IN: list[Row] = [
    {
        "id": "rename",
        "prompt": "Rename notes.txt to todo.txt.",
        "files": {"notes.txt": "milk\n"},
        "expected": {"todo.txt": "milk\n", "notes.txt": None},
    },
    {
        "id": "sort",
        "prompt": "Sort the lines of names.txt into sorted.txt; leave names.txt as it is.",
        "files": {"names.txt": "cleo\nann\nben\n"},
        "expected": {"sorted.txt": "ann\nben\ncleo\n", "names.txt": "cleo\nann\nben\n"},
    },
    {
        "id": "count",
        "prompt": "Write the number of lines with the word error in log.txt into count.txt, and a line break.",
        "files": {"log.txt": "ok\nerror a\nok\nerror b\nerror c\n"},
        "expected": {"count.txt": "3\n"},
    },
]
