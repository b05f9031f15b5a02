"""The frame of every step: what enters it is kept or dropped for a reason, and both are counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from nano3.curate.ask.model import Model
from nano3.curate.inputs import Unit
from nano3.curate.ledger import Ledger, Measure, Original, Tokens, no_original
from nano3.curate.pieces import count_words


@dataclass(frozen=True)
class Context:
    """What a step knows of the run."""

    label: str
    """Number and name of the step: `03-near-dedup`."""
    out: Path
    """Folder of the run."""
    tasks: int
    """Parts that the documents are divided into."""
    seed: int = 0
    tokenizer: str = ""
    """What counts tokens; empty: words between white space."""
    limit: int = 0
    """Documents to read at most in a task; 0: all."""
    against: tuple[tuple[Unit, ...], ...] = ()
    """Parts of the existing corpus, which documents must not repeat."""
    server: Model | None = None
    """The language model that steps ask; None: none was named."""

    @property
    def work(self) -> Path:
        """The step's own folder for what it leaves between executors; it is removed at the end."""
        return self.out / "work" / self.label

    @property
    def accounts(self) -> Path:
        """Where the accounts of the step's tasks lie."""
        return self.out / "accounts" / self.label


@dataclass(frozen=True)
class Segment:
    """Steps that run together, once for each task; all of a segment is done before the next one begins."""

    name: str
    tasks: int
    steps: Sequence[PipelineStep]


class Step(PipelineStep):
    """A step of a curation pipeline: documents in, documents out, everything else dropped for a reason.

    A subclass says what it does in `check` (a filter), `process` (anything else) or, where it must see all documents
    before it can decide (`barrier`), also in `before` and `between`.
    """

    type = "nano3"
    Settings: ClassVar[type]
    """Dataclass of the keys that a [[step]] may have."""
    barrier: ClassVar[bool] = False

    def __init__(self, settings: Any, context: Context) -> None:
        """A step with its settings, in a run."""
        super().__init__()
        self.name = context.label
        self.settings, self.context = settings, context
        self.ledger: Ledger
        self.rank = 0
        self.workers = 1
        """Processes that carry out tasks at the same time."""

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Documents that the step lets through, changed or not; the account is written when all are through."""
        self.rank = rank
        self.ledger = Ledger(self.context.label, self.context.seed, Measure(token_counter(self.context.tokenizer)))
        for document in self.process(self._entering(data or ())):
            self.ledger.leaves(document)
            yield document
        self.ledger.save(self.context.accounts / f"{rank:05d}.json")

    def _entering(self, data: Iterable[Document]) -> Iterator[Document]:
        for document in data:
            self.ledger.enters(document)
            yield document

    def process(self, documents: Iterator[Document]) -> Iterator[Document]:
        """The documents that go on; every other one is handed to `drop`."""
        for document in documents:
            reason = self.check(document)
            if reason:
                self.drop(document, reason)
            else:
                yield document

    def check(self, document: Document) -> str:
        """Why a document is dropped; empty: it is kept."""
        raise NotImplementedError

    def drop(self, document: Document, reason: str, reply: str = "", original: Original = no_original) -> None:
        """Let a document go no further, counted under a reason; the rest as in `Ledger.drops`."""
        self.ledger.drops(document, reason, reply, original)

    def note(self, what: str, n: int = 1) -> None:
        """Count something else that the report shows beside this step."""
        self.ledger.account.note(what, n)

    def prompt_hashes(self) -> dict[str, str]:
        """Name -> hash of the prompts by which it asks a language model."""
        return {}

    def before(self) -> list[PipelineStep]:
        """Steps at the end of the segment before a barrier; they see all documents."""
        return []

    def between(self) -> list[Segment]:
        """Segments between the one before a barrier and the one that begins with this step."""
        return []


class _LimitError(Exception):
    """So many documents were read as are wanted."""


class Reader(Step):
    """The first step: it finds inputs, and reads those of its task."""

    def __init__(self, settings: Any, context: Context, parts: Sequence[Sequence[Unit]] = ()) -> None:
        """A reader of the inputs of all tasks, each task's its own part."""
        super().__init__(settings, context)
        self.parts = parts

    @classmethod
    def find(cls, paths: Sequence[str]) -> tuple[list[Unit], str]:
        """Inputs at some paths, in order, and a line on what was left out there; empty where nothing was.

        Raises:
            UserError, FileNotFoundError: a path is not there, or there is nothing to read.
        """
        raise NotImplementedError

    def process(self, documents: Iterator[Document]) -> Iterator[Document]:
        """The documents of this task's inputs."""
        try:
            for unit in self.parts[self.rank]:
                for document in self.read(unit):
                    yield document
                    if self._is_limit_reached():
                        return
        except _LimitError:
            return

    def _is_limit_reached(self) -> bool:
        return 0 < self.context.limit <= self.ledger.account.entered.documents

    def read(self, unit: Unit) -> Iterator[Document]:
        """The documents of one input; each is made by `found`, and handed to `drop` where it cannot be used."""
        raise NotImplementedError

    def found(self, text: str, name: str, metadata: dict[str, Any] | None = None) -> Document:
        """A document that was read just now. Beyond the limit reading ends here: those dropped count too."""
        if self._is_limit_reached():
            raise _LimitError
        document = Document(text=text, id=name, metadata=metadata or {})
        self.ledger.enters(document)
        return document


def token_counter(tokenizer: str) -> Tokens:
    """What counts tokens: a tokenizer (`mistral`, a tokenizer.json, a folder that holds one), else words."""
    if not tokenizer:
        return count_words
    from nano3.data.tokens.tokenizer import Tokenizer

    return partial(_encoded, Tokenizer.load(tokenizer))


def _encoded(tokenizer: Any, text: str) -> int:
    return len(tokenizer.encode(text))
