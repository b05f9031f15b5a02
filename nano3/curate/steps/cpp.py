"""Gate of compilation: C++ that a compiler does not take is dropped. Nothing is run or linked."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datatrove.data import Document

from nano3.config.checks import check
from nano3.curate.step import Step
from nano3.curate.steps.languages import language_of
from nano3.curate.steps.limits import run_limited

OFTEN, MOST = 2, 16
"""Programs that begin with the same headers, from which on these are compiled once; so many sets of headers at the
most, of some 50 MB each."""
_COMMENT = r"//(?:\\.|[^\\\n])*|/\*.*?\*/"
_HEADER = re.compile(
    rf"\s*(?:{_COMMENT}|#[ \t]*include[ \t]*<([a-z_]+|bits/stdc\+\+\.h)>[ \t]*(?={_COMMENT}|\n|\Z))", re.DOTALL
)
"""A comment, or one of the language's own headers, which may come in any order."""
Standard = Literal["c++11", "c++14", "c++17", "c++20", "c++23"]


@dataclass(frozen=True)
class CppSettings:
    """Settings of `cpp`."""

    standard: Standard = "c++17"
    """Of the language."""
    timeout: float = 20.0
    """Seconds for a document."""

    def __post_init__(self) -> None:
        check("cpp", self, ">", 0, "timeout")


class Cpp(Step):
    """Drops C++ that g++ finds errors in; other languages pass. Headers of the document's own project are not there."""

    Settings = CppSettings

    def process(self, documents: Iterator[Document]) -> Iterator[Document]:
        """Documents that compile, or are no C++."""
        self.context.work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.context.work) as folder:  # large, and gone even after a kill
            headers = PrecompiledHeaders(Path(folder), self.settings.standard)
            for document in documents:
                if language_of(document) != "cpp":
                    self.note("documents that are no C++")
                    yield document
                    continue
                options = headers.options(document.text)
                reason = compile_error(document.text, self.settings.standard, self.settings.timeout, options)
                if reason:
                    self.drop(document, reason)
                else:
                    yield document


def compile_error(text: str, standard: str, timeout: float, options: Sequence[str] = ()) -> str:
    """Why g++ does not take a text; empty: it does.

    Args:
        text: one file of C++.
        standard: `c++17`.
        timeout: seconds.
        options: more of g++'s, those of `PrecompiledHeaders`.
    """
    command = ["g++", f"-std={standard}", *options, "-fsyntax-only", "-w", "-x", "c++", "-"]
    try:
        with tempfile.TemporaryDirectory() as empty:
            status, _ = run_limited(command, empty, timeout, text.encode())
    except subprocess.TimeoutExpired:
        return "takes too long to compile"
    return "does not compile" if status else ""


class PrecompiledHeaders:
    """Headers that programs begin with, compiled once: they take most of the time of a short program.

    A program gets those that it includes itself before anything else, and no others: one that lacks a header it needs
    must not compile.
    """

    def __init__(self, folder: Path, standard: str) -> None:
        """An empty folder, and the standard of all programs."""
        self._folder, self._standard = folder, standard
        self._seen: Counter[tuple[str, ...]] = Counter()
        self._made: dict[tuple[str, ...], Path] = {}

    def options(self, text: str) -> list[str]:
        """Options of g++ for a program."""
        names = leading_headers(text)
        if not names:
            return []
        self._seen[names] += 1
        if names not in self._made and self._seen[names] == OFTEN and len(self._made) < MOST:
            self._make(names)
        return ["-include", str(self._made[names])] if names in self._made else []

    def _make(self, names: Sequence[str]) -> None:
        """Nothing is made where one of them is not there: the program's own error says so."""
        path = self._folder / f"{len(self._made)}.hpp"
        path.write_text("".join(f"#include <{name}>\n" for name in names), "utf-8")
        command = ["g++", f"-std={self._standard}", "-w", "-x", "c++-header", str(path), "-o", f"{path}.gch"]
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            self._made[tuple(names)] = path


def leading_headers(text: str) -> tuple[str, ...]:
    """The language's own headers that a program includes before anything else, in alphabetical order."""
    names, place = set(), 0
    while found := _HEADER.match(text, place):
        place = found.end()
        names |= {found[1]} - {None}
    return tuple(sorted(names))
