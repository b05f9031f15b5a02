"""Python rewritten by a model in two passes, style and then substance (report section 2.2.2).

The passes are those of SwallowCode (arXiv 2505.02881): style-guided code rewriting (SGCR) and self-contained
optimization rewriting (SCOR). `rewrite-gate` judges what comes of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from datatrove.data import Document

from nano3.config.checks import check
from nano3.curate.ask.answers import DropError
from nano3.curate.ask.step import Ask, AskSettings, AskStep
from nano3.curate.fences import fenced
from nano3.curate.steps.languages import language_of
from nano3.curate.steps.llm.replies import check_whole, one_block
from nano3.curate.steps.llm.rewrite_gate import ORIGINAL
from nano3.curate.steps.syntax import has_syntax_error

PROMPTS = {"style": "rewrite-style", "self-contained": "rewrite-self-contained"}
PYTHON = ("python", "py", "python3")


@dataclass(frozen=True)
class RewriteCodeSettings(AskSettings):
    """Settings of `rewrite-code`."""

    max_tokens: int = 8192
    """Tokens of an answer; one that is cut is asked for once more with twice as many."""
    passes: list[Literal["style", "self-contained"]] = field(default_factory=lambda: ["style", "self-contained"])
    """What is done, each to the result of the one before."""
    most: int = 20_000
    """Characters of a file above which it is left out: a model does not write so much without losing some."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check("rewrite-code", self, ">=", 1, "most")
        if not self.passes:
            raise ValueError("rewrite-code.passes is empty: nothing would be rewritten")


class RewriteCode(AskStep):
    """Python files, each as the model rewrites it; the original goes on beside it, for `rewrite-gate`."""

    Settings = RewriteCodeSettings

    def prompts(self) -> Mapping[str, tuple[str, ...]]:
        """One for each pass."""
        return {PROMPTS[name]: ("code",) for name in self.settings.passes}

    async def write(self, document: Document, ask: Ask) -> Sequence[Document]:
        """The rewrite."""
        if language_of(document) != "python":
            raise DropError("no Python")
        if len(document.text) > self.settings.most:
            raise DropError("too long to rewrite")
        code = document.text
        for name in self.settings.passes:
            code = one_block((await ask(PROMPTS[name], {"code": fenced(code, "python")})).text, PYTHON)
            if has_syntax_error(code, "python"):
                raise DropError(f"syntax error after the pass '{name}'")
            check_whole(code, document.text)
        return [self.child(document, code, "rewrite", language="python", **{ORIGINAL: document.text})]
