"""What each step did with the documents that entered it: nothing leaves a pipeline without being counted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nano3.files import write_atomic

SAMPLES, SAMPLE_CHARACTERS = 20, 600
"""Documents shown of each reason, and how much of each."""
Tokens = Callable[[str], int]


@dataclass(frozen=True)
class Size:
    """An amount of text."""

    documents: int = 0
    bytes: int = 0
    tokens: int = 0

    def __add__(self, other: Size) -> Size:
        return Size(self.documents + other.documents, self.bytes + other.bytes, self.tokens + other.tokens)


class Measure:
    """Sizes of texts; the last one is remembered, since what leaves one step enters the next."""

    def __init__(self, tokens: Tokens) -> None:
        """Measure with what counts the tokens of a text."""
        self._tokens, self._text, self._size = tokens, "", Size(1, 0, 0)

    def __call__(self, text: str) -> Size:
        """Size of one document."""
        if text is not self._text:
            self._text, self._size = text, Size(1, len(text.encode("utf-8", "surrogatepass")), self._tokens(text))
        return self._size


@dataclass
class Sample:
    """A document as the report shows it; of all documents of one reason those of the smallest `key` are shown."""

    key: str
    id: str
    text: str
    reply: str = ""
    """What a model, or its server, said of it; empty: none was asked."""
    copy_of: str = ""
    """Name of the kept document that it repeats, where it was dropped for that."""
    similarity: float = 0.0
    """How much it has in common with that one: 1 for the same text."""


Original = Callable[[], tuple[str, float]]
"""Finds the name of the document that one repeats, and how similar they are."""


def no_original() -> tuple[str, float]:
    """Of a document that repeats none."""
    return "", 0.0


@dataclass
class Dropped:
    """Documents that were dropped for one reason."""

    size: Size = field(default_factory=Size)
    samples: list[Sample] = field(default_factory=list)

    def add(self, size: Size, sample: Sample, original: Original = no_original) -> None:
        """One more document; what it repeats is looked up only where it is shown."""
        self.size += size
        if len(self.samples) < SAMPLES or sample.key < self.samples[-1].key:
            sample.copy_of, sample.similarity = original()
            self._keep([*self.samples, sample])

    def merge(self, other: Dropped) -> None:
        """Take in those of another task."""
        self.size += other.size
        self._keep([*self.samples, *other.samples])

    def _keep(self, samples: list[Sample]) -> None:
        self.samples = sorted(samples, key=lambda sample: (sample.key, sample.id))[:SAMPLES]


@dataclass
class Account:
    """One step's books, of one task or of several together."""

    entered: Size = field(default_factory=Size)
    kept: Size = field(default_factory=Size)
    """Of the documents that went on, what they were when they entered."""
    left: Size = field(default_factory=Size)
    """Of the same documents, what they were when they left: a step may change texts."""
    dropped: dict[str, Dropped] = field(default_factory=dict)
    """By reason, as they entered."""
    notes: dict[str, int] = field(default_factory=dict)
    """What else the step counts, such as which tool it fell back to."""

    def merge(self, other: Account) -> None:
        """Take in another task's."""
        self.entered += other.entered
        self.kept += other.kept
        self.left += other.left
        for reason, dropped in other.dropped.items():
            self.dropped.setdefault(reason, Dropped()).merge(dropped)
        for what, n in other.notes.items():
            self.note(what, n)

    def note(self, what: str, n: int = 1) -> None:
        """Count something."""
        self.notes[what] = self.notes.get(what, 0) + n

    def all_dropped(self) -> Size:
        """The documents of all reasons."""
        return sum((dropped.size for dropped in self.dropped.values()), Size())

    def is_balanced(self) -> bool:
        """Whether everything that entered was kept or dropped, in documents, bytes and tokens."""
        return self.entered == self.kept + self.all_dropped()

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, table: dict[str, Any]) -> Account:
        """What `to_json` gave."""
        dropped = {
            reason: Dropped(Size(**one["size"]), [Sample(**sample) for sample in one["samples"]])
            for reason, one in table["dropped"].items()
        }
        entered, kept, left = (Size(**table[name]) for name in ("entered", "kept", "left"))
        return cls(entered, kept, left, dropped, dict(table["notes"]))


class Ledger:
    """An account being kept: of one step in one task."""

    def __init__(self, step: str, seed: int, measure: Measure) -> None:
        """Begin empty.

        Args:
            step: the step's label, which with `seed` decides which samples are shown.
            seed: another one shows other samples.
            measure: sizes of texts.
        """
        self.account = Account()
        self._step, self._seed, self._measure = step, seed, measure
        self._inside: dict[int, Size] = {}
        self._made: set[int] = set()

    def enters(self, document: Any) -> None:
        """A document comes in."""
        size = self._measure(document.text)
        self._inside[id(document)] = size
        self.account.entered += size

    def leaves(self, document: Any) -> None:
        """A document that came in goes on to the next step. One that never came in spoils the balance."""
        if id(document) in self._made:
            self._made.remove(id(document))
        else:
            self.account.kept += self._inside.pop(id(document), Size(1, 0, 0))
        self.account.left += self._measure(document.text)

    def becomes(self, document: Any, others: Iterable[Any]) -> None:
        """A document that came in goes on as others, which may be itself too; they then leave."""
        made = {id(other) for other in others}
        if id(document) not in made:
            self.account.kept += self._inside.pop(id(document), Size(1, 0, 0))
        self._made |= made - {id(document)}

    def drops(self, document: Any, reason: str, reply: str = "", original: Original = no_original) -> None:
        """A document that came in goes no further.

        Args:
            document: the one.
            reason: why.
            reply: of the model that was asked about it.
            original: finds the document that it repeats.
        """
        size = self._inside.pop(id(document), Size(1, 0, 0))
        key = hashlib.blake2b(
            f"{self._seed}\0{self._step}\0{reason}\0{document.id}".encode("utf-8", "replace"), digest_size=8
        ).hexdigest()
        texts = (document.id, document.text[:SAMPLE_CHARACTERS], reply[:SAMPLE_CHARACTERS])
        name, text, said = map(_encodable, texts)
        sample = Sample(key, name, text, said)
        self.account.dropped.setdefault(_encodable(reason), Dropped()).add(size, sample, original)

    def save(self, path: Path) -> None:
        """Write the account, whole or not at all."""
        write_atomic(path, json.dumps(self.account.to_json(), ensure_ascii=False))


def _encodable(text: str) -> str:
    """Without halves of surrogate pairs, which JSON can hold and no file."""
    return text.encode("utf-8", "replace").decode("utf-8")


def read_accounts(paths: Iterable[Path]) -> Account:
    """The accounts of some tasks as one; the same whatever the order."""
    total = Account()
    for path in sorted(paths):
        total.merge(Account.from_json(json.loads(path.read_text("utf-8"))))
    return total
