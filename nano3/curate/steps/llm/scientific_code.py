"""Problems of scientific computing in ordered steps, a function each (report section 2.2.4)."""

from __future__ import annotations

import ast
import builtins
import re
import symtable
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from datatrove.data import Document

from nano3.config.checks import check
from nano3.curate.ask.answers import DropError
from nano3.curate.ask.step import Ask, AskSettings, AskStep
from nano3.curate.steps.llm.judge import shortened
from nano3.curate.steps.llm.markers import text_parts
from nano3.curate.steps.llm.replies import says, without_preamble

PROMPT = "scientific-problem"
NONE = "NONE"
"""What the model writes where a text gives no problem."""
_STEP = re.compile(r"^#{1,6}[ \t]+Step[ \t]+(\d+)\b[:.]?[ \t]*(.*)$")
_PYTHON = ("python", "py", "python3", "")


@dataclass(frozen=True)
class ScientificProblemSettings(AskSettings):
    """Settings of `scientific-problem`; the number of steps is the report's."""

    max_tokens: int = 8192
    """Tokens of an answer; one that is cut is asked for once more with twice as many."""
    fewest: int = 5
    """Steps that a problem must have."""
    most: int = 15
    """Steps that it may have."""
    statements: int = 3
    """Statements, docstring aside, that each function must have: fewer are trivial (our number)."""
    shown: int = 12_000
    """Characters of a text that the model sees: of a longer one the beginning and the end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check("scientific-problem", self, ">=", 1, "fewest", "statements")
        check("scientific-problem", self, ">=", 100, "shown")
        if self.most < self.fewest:
            raise ValueError(f"scientific-problem.most is {self.most}; it must be at least fewest, {self.fewest}")


class ScientificProblem(AskStep):
    """A problem from each scientific text, with its solution: numbered steps, each of one Python function.

    Checked without running them: their number and order, one function a step, no trivial one, and no name that is used
    before it is defined. Metadata `steps` has the functions' names.
    """

    Settings = ScientificProblemSettings
    PROMPTS: ClassVar[Mapping[str, tuple[str, ...]]] = {PROMPT: ("text", "fewest", "most", "none")}

    async def write(self, document: Document, ask: Ask) -> Sequence[Document]:
        """The problem with its steps."""
        values = {"text": shortened(document.text, self.settings.shown), "fewest": str(self.settings.fewest),
                  "most": str(self.settings.most), "none": NONE}  # fmt: skip
        text = without_preamble((await ask(PROMPT, values)).text)
        if says(text, NONE):
            raise DropError("no problem in it")
        names = check_steps(text, self.settings)
        return [self.child(document, text + "\n", "problem", steps=names)]


def check_steps(text: str, settings: ScientificProblemSettings) -> list[str]:
    """Names of the steps' functions, in order.

    Raises:
        DropError: the steps are too few or many, out of order, or one is not of one function as asked.
    """
    steps = read_steps(text)
    if not settings.fewest <= len(steps) <= settings.most:
        raise DropError("number of steps")
    if [number for number, _ in steps] != list(range(1, len(steps) + 1)):
        raise DropError("steps out of order")
    trees = [_parsed(blocks) for _, blocks in steps]
    functions = [_only_function(tree) for tree in trees]
    names = [function.name for function in functions]
    if len(set(names)) < len(names):
        raise DropError("two functions of one name")
    if any(_statements(function) < settings.statements for function in functions):
        raise DropError("trivial step")
    _check_names([blocks[0] for _, blocks in steps], names)
    return names


def _check_names(codes: Sequence[str], functions: Sequence[str]) -> None:
    """Raise DropError where a step uses what is defined neither in it nor before, or where no step uses another."""
    known = set(dir(builtins))
    builds = False
    for i, code in enumerate(codes):
        defined, used = global_names(code)
        known |= defined
        if used & set(functions[i + 1 :]):
            raise DropError("function used before its step")
        if used - known:
            raise DropError("name that is nowhere defined")
        builds = builds or bool(used & set(functions[:i]))
    if not builds:
        raise DropError("steps that do not build on each other")


def global_names(code: str) -> tuple[set[str], set[str]]:
    """Names that a module defines at its top, and those that it uses without defining them in a function."""
    top = symtable.symtable(code, "step", "exec")
    defined = {one.get_name() for one in top.get_symbols() if one.is_assigned() or one.is_imported()}
    used, tables = set(), [top]
    for table in tables:
        tables += table.get_children()
        used |= {
            one.get_name() for one in table.get_symbols() if one.is_referenced() and (table is top or one.is_global())
        }
    return defined, used


def read_steps(text: str) -> list[tuple[int, list[str]]]:
    """(number, Python blocks) of each step; what stands before the first one is the problem."""
    steps: list[tuple[int, list[str]]] = []
    problem = False
    for part, kind, language in text_parts(text):
        if kind == "CODE" and steps and language.lower() in _PYTHON:
            steps[-1][1].append("\n".join(part.split("\n")[1:-1]) + "\n")
        for line in () if kind else part.split("\n"):
            found = _STEP.match(line)
            if found:
                steps.append((int(found[1]), []))
            elif not steps:
                problem = problem or bool(line.strip("# \t"))
    if not problem:
        raise DropError("steps without a problem")
    return steps


def _parsed(blocks: Sequence[str]) -> ast.Module:
    if len(blocks) != 1:
        raise DropError("step without one block of Python")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(blocks[0])
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DropError("syntax error") from error


def _only_function(tree: ast.Module) -> ast.FunctionDef:
    """The function of a step, beside which only imports and constants may stand."""
    beside = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
    if any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in tree.body):
        raise DropError("wildcard import")
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    if len(functions) != 1 or not all(isinstance(node, (ast.FunctionDef, *beside)) for node in tree.body):
        raise DropError("step without one function")
    return functions[0]


def _statements(function: ast.FunctionDef) -> int:
    found = sum(isinstance(node, ast.stmt) for node in ast.walk(function)) - 1
    return found - (ast.get_docstring(function, clean=False) is not None)
