"""Tasks at a shell in the sandbox; what counts is which files there are in the end."""

from __future__ import annotations

import hashlib
import json
import posixpath
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.data.tasks.source import Split
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
from nano3.rl.environments.made import given_or_made
from nano3.rl.environments.made_programs import terminal_rows
from nano3.rl.environments.rows import Row, column, id_of, prompt_of
from nano3.sandbox.archive import Entry, contents, pack
from nano3.sandbox.limits import MIB, Limits, SandboxError
from nano3.sandbox.sandbox import Sandbox

SYSTEM = "You work at a shell. Each command starts in the same folder, in a new shell; files stay. Say when it is done."
SHOWN = 4000
"""Characters of a command's output that the model is shown."""
MOST_COMMANDS = 30
KEPT_BYTES = 512 * MIB
"""Of folders that are remembered, of all rollouts together."""
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
Folder = Mapping[str, Entry]


class Kept:
    """Folder and output after commands that ran before: of those used last, as many as have room."""

    def __init__(self, most_bytes: int) -> None:
        """Empty."""
        self._most, self._used, self._lock = most_bytes, 0, threading.Lock()
        self._found: OrderedDict[str, tuple[Folder, str]] = OrderedDict()

    def get(self, key: str) -> tuple[Folder, str] | None:
        """What was put under a key, where it is still there."""
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
            return self._found.get(key)

    def put(self, key: str, found: tuple[Folder, str]) -> None:
        """Remember it, and forget what was not used for longest."""
        with self._lock:
            if key in self._found:
                self._used -= _size(self._found.pop(key))
            self._found[key] = found
            self._used += _size(found)
            while self._used > self._most and len(self._found) > 1:
                self._used -= _size(self._found.popitem(last=False)[1])


class Terminal:
    """1 where the working folder's files are in the end as they should be, else 0.

    Columns: a prompt; `files`: path to text at the start; `expected`: path to text in the end, null where nothing may
    be. What `expected` does not name may be anything. From one command to the next stay files, folders, links, pipes,
    permissions and times; not what the shell knows, such as variables.
    """

    name = "terminal"

    def __init__(
        self,
        rows: str | Path | Iterable[Row] | None = None,
        n: int = 200,
        seed: int = 0,
        split: Split | None = None,
        seconds: float = 10.0,
        limits: Limits | None = None,
    ) -> None:
        """
        Args:
            rows: a jsonl file or its rows; None: chores with files made here.
            n, seed: of those.
            split: train or heldout, which share no prompt; None: train of made ones, all of given ones.
            seconds: for one command; one that is killed changes nothing.
            limits: of the sandbox.

        Raises:
            UserError: a row without expected files, or that is right at the start.
            SandboxError: this machine cannot hold programs in.
        """
        found = given_or_made(rows, terminal_rows, n, seed, split, self.name, lambda row: row["prompt"])
        where = f"environment {self.name}"
        self._tasks = check_ids([_task(row, f"{where}, row {i + 1}") for i, row in enumerate(found)], self.name)
        self._sandbox = Sandbox(replace(limits or Limits(folder_bytes=8 * MIB), seconds=seconds))
        self._kept = Kept(KEPT_BYTES)

    def tasks(self) -> Sequence[Task]:
        """All."""
        return self._tasks

    def step(self, task: Task, rollout: Rollout) -> Sequence[Message]:
        """Output of the commands."""
        last = rollout.messages[-1] if rollout.messages else {}
        calls = last.get("tool_calls") or ()
        return tool_results(last, self._play(task, rollout, len(calls))[1]) if calls else []

    def verify(self, task: Task, rollout: Rollout) -> Reward:
        """By what the rollout's commands leave; those whose folder is no longer remembered run again."""
        folder, _ = self._play(task, rollout, 0)
        return all_or_nothing(_as_expected(folder, task.truth["expected"]), commands=len(rollout.calls))

    def _play(self, task: Task, rollout: Rollout, shown: int) -> tuple[Folder, list[str]]:
        """Folder after all commands of a rollout, and what each of the last `shown` put out."""
        calls, keys = rollout.calls, _keys(task, rollout.calls)
        folder, done = _at_start(task.truth["files"]), 0
        for count in range(len(calls) - shown, 0, -1):
            known = self._kept.get(keys[count - 1])
            if known:
                folder, done = known[0], count
                break
        outputs = []
        for number in range(done, len(calls)):
            found = self._kept.get(keys[number])
            if found is None:
                found = self._called(number, calls[number], folder)
                self._kept.put(keys[number], found)
            folder = found[0]
            outputs.append(found[1])
        return folder, outputs[len(outputs) - shown :]

    def _called(self, number: int, call: tuple[str, Mapping[str, Any] | None], folder: Folder) -> tuple[Folder, str]:
        """Folder after a call of the tool, and its output."""
        command = (call[1] or {}).get("command")
        if call[0] != "run" or not isinstance(command, str) or "\0" in command:
            return folder, "Error: call run with a command"
        if number >= MOST_COMMANDS:
            return folder, f"Error: more than {MOST_COMMANDS} commands"
        return self._ran(folder, command)

    def _ran(self, folder: Folder, command: str) -> tuple[Folder, str]:
        text = command.encode(errors="replace").decode()
        try:
            # Both in one stream, in the order in which they were written.
            done = self._sandbox.run(
                ["/bin/sh", "-c", 'exec 2>&1; eval "$1"', "sh", text], files=folder, keep_files=True
            )
        except SandboxError as error:
            raise EnvironmentFaultError("sandbox", str(error)) from error
        output = done.stdout.decode(errors="replace")
        output = output if len(output) <= SHOWN else output[:SHOWN] + " ... (cut off)"
        if done.end != "exited" or done.files_error:
            why = {"timeout": "killed: it took too long", "output": "killed: it wrote too much"}
            return folder, f"{output}\n({why.get(done.end, done.files_error)}; the files are as before it)"
        return done.entries, f"{output}(exit status {done.code})"


def _size(found: tuple[Folder, str]) -> int:
    """Bytes of memory, about."""
    return 1000 + len(found[1]) + sum(500 + len(entry.content) for entry in found[0].values())


def _keys(task: Task, calls: Sequence[tuple[str, Any]]) -> list[str]:
    """A name for what is there after each call: of the start and of all calls up to it."""
    keys, key = [], json.dumps(task.truth["files"], sort_keys=True)
    for call in calls:
        key = hashlib.sha256((key + json.dumps(call, sort_keys=True)).encode()).hexdigest()
        keys.append(key)
    return keys


def _at_start(files: Mapping[str, str]) -> Folder:
    return {path: Entry(content=text.encode()) for path, text in files.items()}


def _as_expected(folder: Folder, expected: Mapping[str, str | None]) -> bool:
    files = contents(folder)
    for path, text in expected.items():
        right = path not in folder if text is None else files.get(path) == text.encode()
        if not right:
            return False
    return True


def _task(row: Row, where: str) -> Task:
    files = {posixpath.normpath(str(path)): str(text) for path, text in (row.get("files") or {}).items()}
    expected: Any = column(row, "expected", "expected_files", where=where)
    if not isinstance(expected, Mapping) or not expected:
        raise UserError(f"{where}: expected is no object of paths and texts")
    expected = {posixpath.normpath(str(path)): text for path, text in expected.items()}
    pack(_at_start(files | dict.fromkeys(expected, "")))  # is sure of the paths
    if _as_expected(_at_start(files), expected):
        raise UserError(f"{where}: the files are as expected at the start, so doing nothing would be rewarded")
    messages = ({"role": "system", "content": SYSTEM}, *prompt_of(row, where))
    return Task(id_of(row), messages, {"files": files, "expected": expected}, (TOOL,))
