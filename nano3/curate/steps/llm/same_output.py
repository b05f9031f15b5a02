"""Gate of translated programs: where tests are given, the C++ and its Python must write the same in the sandbox."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datatrove.data import Document

from nano3.config.checks import check
from nano3.curate.step import Context, Step
from nano3.curate.steps.cpp import Standard
from nano3.curate.steps.llm.rewrite_gate import ORIGINAL
from nano3.sandbox.archive import Entry
from nano3.sandbox.limits import MIB, Limits
from nano3.sandbox.sandbox import Sandbox

COMPILE = Limits(seconds=60, cpu_seconds=40, memory=2048 * MIB)
SOURCE, BINARY = "program.cpp", "program"


@dataclass(frozen=True)
class SameOutputSettings:
    """Settings of `same-output`."""

    standard: Standard = "c++17"
    """Of the language."""
    tests: str = "tests"
    """Field of a record with its tests: a list, as JSON values or text, of {"stdin", "stdout"}, the latter optional."""
    most_tests: int = 10
    """Of a program; further ones are left out."""
    seconds: float = 10.0
    """For one test of one of the two programs."""

    def __post_init__(self) -> None:
        check("same-output", self, ">=", 1, "most_tests")
        check("same-output", self, ">", 0, "seconds")


class SameOutput(Step):
    """Drops C++ that does not write, for each test, what its Python writes, and what is expected where that is given.

    Both run in the sandbox (bubblewrap). What has no tests passes, and is counted; metadata `tests_passed` says how
    many were run.
    """

    Settings = SameOutputSettings

    def __init__(self, settings: Any, context: Context) -> None:
        """A gate whose sandbox is made when it is first needed."""
        super().__init__(settings, context)
        self._sandbox: Sandbox | None = None

    def check(self, document: Document) -> str:
        """Why a program is dropped; empty: it is kept."""
        tests = read_tests(document.metadata.get(self.settings.tests))[: self.settings.most_tests]
        python = document.metadata.get(ORIGINAL)
        if not tests or not isinstance(python, str):
            self.note("programs without tests, kept")
            return ""
        self._sandbox = self._sandbox or Sandbox(Limits(seconds=self.settings.seconds))
        done = self._sandbox.run(
            ["g++", f"-std={self.settings.standard}", "-O1", "-w", SOURCE, "-o", BINARY],
            files={SOURCE: document.text.encode("utf-8", "replace")}, keep_files=True, limits=COMPILE,
        )  # fmt: skip
        if not done.ok or BINARY not in done.entries:
            return "does not compile and link"
        binary = done.entries[BINARY]
        for given, expected in tests:
            if reason := self._unequal(self._sandbox, python, binary, given.encode(errors="replace"), expected):
                return reason
        document.metadata["tests_passed"] = len(tests)
        return ""

    def _unequal(self, sandbox: Sandbox, python: str, binary: Entry, given: bytes, expected: str | None) -> str:
        before = sandbox.run_python(python, stdin=given)
        if not before.ok or (expected is not None and lines(before.stdout) != lines(expected.encode(errors="replace"))):
            return "the Python fails its tests"
        after = sandbox.run([f"./{BINARY}"], files={BINARY: binary}, stdin=given)
        return "" if after.ok and lines(after.stdout) == lines(before.stdout) else "another output than the Python's"


def read_tests(value: Any) -> list[tuple[str, str | None]]:
    """(standard input, expected output or None) of each test; empty where a value is no list of tests."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return []
    rows = value if isinstance(value, Sequence) and not isinstance(value, str) else []
    found = [(row.get("stdin", row.get("input")), row.get("stdout", row.get("output")))
             for row in rows if isinstance(row, dict)]  # fmt: skip
    tests = [(_typed(given), _typed(wanted)) for given, wanted in found]
    return [(given, wanted) for given, wanted in tests if given is not None]


def _typed(value: Any) -> str | None:
    """Text, or a whole number as a program reads or writes it; None: neither."""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def lines(output: bytes) -> list[bytes]:
    """Lines without white space at their ends, and without empty ones at the end."""
    return [line.rstrip() for line in output.rstrip().split(b"\n")]
