"""Gate of style: Python that Pylint scores too low is dropped. Pylint (GPL) runs as a program of its own."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from datatrove.data import Document

from nano3.config.checks import check
from nano3.curate.step import Step
from nano3.curate.steps.languages import language_of
from nano3.curate.steps.limits import run_limited

WEIGHTS = {"error": 5, "warning": 1, "refactor": 1, "convention": 1}
OPTIONS = (
    f"--rcfile={os.devnull}", "--output-format=json2", "--persistent=n", "--score=n", "--jobs=1",
    "--enable=file-ignored",
    # What depends on the machine, or on the other files of a batch.
    "--disable=import-error,no-name-in-module,relative-beyond-top-level,duplicate-code,cyclic-import",
)  # fmt: skip


@dataclass(frozen=True)
class PylintSettings:
    """Settings of `pylint`; the report (section 2.2.2) names the gate and no threshold: this one is ours."""

    least: float = 5.0
    """Score, of at most 10, that Python must have."""
    batch: int = 50
    """Files judged by one process: starting it takes longer than a file."""
    timeout: float = 120.0
    """Seconds for a batch; one that takes longer is judged file by file, each with a tenth of it."""

    def __post_init__(self) -> None:
        check("pylint", self, ">=", 1, "batch")
        check("pylint", self, ">", 0, "timeout")
        check("pylint", self, "<=", 10, "least")


class PylintGate(Step):
    """Drops Python that scores below `least`, and writes the score into the metadata; other languages pass."""

    Settings = PylintSettings

    def process(self, documents: Iterator[Document]) -> Iterator[Document]:
        """Documents in order, judged in batches."""
        batch: list[Document] = []
        python = 0
        for document in documents:
            batch.append(document)
            python += language_of(document) == "python"
            if python == self.settings.batch or len(batch) == 20 * self.settings.batch:
                yield from self._judged(batch)
                batch, python = [], 0
        yield from self._judged(batch)

    def _judged(self, batch: Sequence[Document]) -> Iterator[Document]:
        python = [document for document in batch if language_of(document) == "python"]
        scores = {id(document): score for document, score in zip(python, self._scores(python), strict=True)}
        for document in batch:
            if id(document) not in scores:
                self.note("documents that are no Python")
                yield document
            elif (score := scores[id(document)]) is None:
                self.drop(document, "pylint cannot judge it")
            elif score < self.settings.least:
                self.drop(document, "pylint score too low")
            else:
                document.metadata["pylint_score"] = round(score, 2)
                yield document

    def _scores(self, python: Sequence[Document]) -> list[float | None]:
        return scores_of([document.text for document in python], self.settings.timeout)


def scores_of(texts: Sequence[str], timeout: float) -> list[float | None]:
    """Scores by `pylint_scores`; where a batch does not end, of each text alone, in a tenth of the time."""
    if not texts:
        return []
    scores = pylint_scores(texts, timeout)
    if scores is not None:
        return scores
    each = (pylint_scores([text], timeout / 10) for text in texts)
    return [one[0] if one else None for one in each]


def pylint_scores(texts: Sequence[str], timeout: float) -> list[float | None] | None:
    """Pylint's score of each Python text, at most 10; None for one that it fails on or that tells it to look away
    (`skip-file`), and where it did not end."""
    with tempfile.TemporaryDirectory() as folder:
        names = [f"module_{i}.py" for i in range(len(texts))]
        for name, text in zip(names, texts, strict=True):
            Path(folder, name).write_text(text, "utf-8")
        command = [sys.executable, "-P", "-m", "pylint", *OPTIONS, *names]
        environment = os.environ | {"PYLINTHOME": folder, "HOME": folder}
        try:
            _, output = run_limited(command, folder, timeout, environment=environment)
            messages = json.loads(output)["messages"]
        except (subprocess.TimeoutExpired, ValueError, KeyError):
            return None
    found: dict[str, Counter[str]] = {name: Counter() for name in names}
    for message in messages:
        kind = "fatal" if message["symbol"] == "file-ignored" else message["type"]
        found.setdefault(os.path.basename(message["path"]), Counter())[kind] += 1
    return [_score(found[name], text) for name, text in zip(names, texts, strict=True)]


def _score(messages: Counter[str], text: str) -> float | None:
    """Pylint's own formula, for one file of a batch."""
    if messages["fatal"]:
        return None
    statements = statements_of(text)
    if statements is None:
        return 0.0
    weight = sum(WEIGHTS[kind] * messages[kind] for kind in WEIGHTS)
    return max(0.0, 10.0 - weight / statements * 10) if statements else 10.0


def statements_of(text: str) -> int | None:
    """Statements as Pylint counts them; None where it is no Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return sum(isinstance(node, ast.stmt | ast.ExceptHandler) for node in ast.walk(tree)) - _docstrings(tree)


def _docstrings(tree: ast.AST) -> int:
    """Docstrings, which Pylint does not count as statements."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return sum(isinstance(node, owners) and ast.get_docstring(node, clean=False) is not None for node in ast.walk(tree))
