"""Gate of compilation: C++ that a compiler does not take is dropped. Nothing is run or linked."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datatrove.data import Document

from nano3.config.checks import check
from nano3.curate.step import Step
from nano3.curate.steps.languages import language_of
from nano3.curate.steps.limits import run_limited

ALL_HEADERS = "bits/stdc++.h"
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
        with ExitStack() as stack:
            headers: Path | None = None
            for document in documents:
                if language_of(document) != "cpp":
                    self.note("documents that are no C++")
                    yield document
                    continue
                if headers is None and ALL_HEADERS in document.text:
                    self.context.work.mkdir(parents=True, exist_ok=True)
                    folder = tempfile.TemporaryDirectory(dir=self.context.work)  # 100 MB, gone even after a kill
                    headers = Path(stack.enter_context(folder))
                    precompile(headers, self.settings.standard)
                reason = compile_error(document.text, self.settings.standard, self.settings.timeout, headers)
                if reason:
                    self.drop(document, reason)
                else:
                    yield document


def compile_error(text: str, standard: str, timeout: float, headers: Path | None = None) -> str:
    """Why g++ does not take a text; empty: it does.

    Args:
        text: one file of C++.
        standard: `c++17`.
        timeout: seconds.
        headers: a folder that `precompile` has filled.
    """
    folder = ["-I", str(headers)] if headers else []
    command = ["g++", f"-std={standard}", *folder, "-fsyntax-only", "-w", "-x", "c++", "-"]
    try:
        with tempfile.TemporaryDirectory() as empty:
            status, _ = run_limited(command, empty, timeout, text.encode())
    except subprocess.TimeoutExpired:
        return "takes too long to compile"
    return "does not compile" if status else ""


def precompile(folder: Path, standard: str) -> None:
    """Compile the header of all headers once, for the documents that include it: it takes most of their time."""
    target = folder / (ALL_HEADERS + ".gch")
    target.parent.mkdir(parents=True, exist_ok=True)
    source = folder / "all.hpp"  # g++ precompiles no standard input
    source.write_text(f"#include <{ALL_HEADERS}>\n", "utf-8")
    command = ["g++", f"-std={standard}", "-w", "-x", "c++-header", str(source), "-o", str(target)]
    subprocess.run(command, capture_output=True, check=False)
    source.unlink()  # a document may not include it
