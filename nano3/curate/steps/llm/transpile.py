"""Python translated to C++ by a model (report section 2.2.2); `cpp` and `same-output` judge what comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from datatrove.data import Document

from nano3.config.checks import check
from nano3.curate.ask.answers import DropError
from nano3.curate.ask.step import Ask, AskSettings, AskStep
from nano3.curate.fences import fenced
from nano3.curate.steps.languages import language_of
from nano3.curate.steps.llm.replies import check_whole, one_block
from nano3.curate.steps.llm.rewrite_gate import ORIGINAL

PROMPT = "python-to-cpp"
CPP = ("cpp", "c++", "cc", "cxx")


@dataclass(frozen=True)
class PythonToCppSettings(AskSettings):
    """Settings of `python-to-cpp`."""

    max_tokens: int = 8192
    """Tokens of an answer; one that is cut is asked for once more with twice as many."""
    standard: str = "C++17"
    """What the prompt asks for; `cpp` and `same-output` compile with their own setting."""
    most: int = 20_000
    """Characters of a file above which it is left out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check("python-to-cpp", self, ">=", 1, "most")


class PythonToCpp(AskStep):
    """Python programs, each as the C++ that a model makes of it; the Python goes on beside it, for `same-output`."""

    Settings = PythonToCppSettings
    PROMPTS: ClassVar[Mapping[str, tuple[str, ...]]] = {PROMPT: ("code", "standard")}

    async def write(self, document: Document, ask: Ask) -> Sequence[Document]:
        """The C++."""
        if language_of(document) != "python":
            raise DropError("no Python")
        if len(document.text) > self.settings.most:
            raise DropError("too long to translate")
        answer = await ask(PROMPT, {"code": fenced(document.text, "python"), "standard": self.settings.standard})
        code = one_block(answer.text, CPP)
        check_whole(code, document.text)
        return [self.child(document, code, "cpp", language="cpp", **{ORIGINAL: document.text})]
