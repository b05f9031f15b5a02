"""A sample with a planned number of documents of each stratum, the same however the input is divided into tasks."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from nano3.config.checks import check
from nano3.curate.step import Context, Segment, Step
from nano3.curate.steps.dedup.verdicts import Stage
from nano3.files import write_atomic

UNKNOWN = "unknown"
"""Stratum of documents without the field."""
Candidate = tuple[str, str, int]
"""Key by which documents of a stratum are drawn, the smallest first; id; number in its task."""


@dataclass(frozen=True)
class StratifiedSampleSettings:
    """Settings of `stratified-sample`; the report (section 2.2.4) publishes no plan: this one is ours."""

    field: str = "subject"
    """Metadata whose value is the stratum; of a path such as `taxonomy.code` the inner value."""
    characters: int = 1
    """Of the value that make the stratum, 0: all. In a decimal classification 1 is the class, 2 the division."""
    n: int = 0
    """Documents to keep; 0: `share` of them."""
    share: float = 1.0
    """Of the documents, where `n` is 0."""
    plan: Literal["proportional", "equal"] = "proportional"
    """Each stratum by its share of the input; or the same number of each, where it has so many."""

    def __post_init__(self) -> None:
        check("stratified-sample", self, ">=", 0, "characters", "n")
        check("stratified-sample", self, ">", 0, "share")
        check("stratified-sample", self, "<=", 1, "share")


class StratifiedSample(Step):
    """Keeps a sample by strata. Within one, a hash of `pipeline.seed` and a document's id draws it.

    Metadata `stratum` names the stratum.
    """

    Settings = StratifiedSampleSettings
    barrier = True

    def before(self) -> list[PipelineStep]:
        """Stratum and key of every document."""
        return [WriteStrata(self.context, self.settings)]

    def between(self) -> list[Segment]:
        """The draw, in one task."""
        return [Segment(f"{self.context.label}-draw", 1, [Draw(self.context.work, self.context.tasks, self.settings)])]

    def process(self, documents: Iterator[Document]) -> Iterator[Document]:
        """The documents drawn, in order."""
        drawn = set(json.loads((self.context.work / "drawn" / f"{self.rank:05d}.json").read_text("utf-8")))
        for number, document in enumerate(documents):
            stratum = stratum_of(document, self.settings)
            if number in drawn:
                document.metadata["stratum"] = stratum
                self.note(f"kept of stratum {stratum}")
                yield document
            else:
                self.drop(document, "not in the sample")


class WriteStrata(Stage):
    """Leaves stratum, key and number of every document of a task."""

    def __init__(self, context: Context, settings: StratifiedSampleSettings) -> None:
        """Write to `work/strata`."""
        super().__init__()
        self.work, self.seed, self.settings = context.work, context.seed, settings

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Read all documents."""
        rows = [
            (stratum_of(document, self.settings), *draw_key(self.seed, document), number)
            for number, document in enumerate(data)
        ]
        write_atomic(self.work / "strata" / f"{rank:05d}.json", json.dumps(rows))


class Draw(Stage):
    """Draws the sample, and leaves the numbers of the documents drawn for each task."""

    def __init__(self, work: Path, tasks: int, settings: StratifiedSampleSettings) -> None:
        """Read `work/strata`, write `work/drawn`."""
        super().__init__()
        self.work, self.tasks, self.settings = work, tasks, settings

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """One task for all."""
        strata: dict[str, list[tuple[Candidate, int]]] = {}
        for task in range(self.tasks):
            rows = json.loads((self.work / "strata" / f"{task:05d}.json").read_text("utf-8"))
            for stratum, key, name, number in rows:
                strata.setdefault(stratum, []).append(((key, name, number), task))
        counts = {stratum: len(found) for stratum, found in strata.items()}
        total = sum(counts.values())
        n = min(total, self.settings.n or round(self.settings.share * total))
        wanted = planned(counts, n, self.settings.plan)
        drawn: dict[int, list[int]] = {task: [] for task in range(self.tasks)}
        for stratum, found in strata.items():
            for (_, _, number), task in sorted(found)[: wanted[stratum]]:
                drawn[task].append(number)
        for task, numbers in drawn.items():
            write_atomic(self.work / "drawn" / f"{task:05d}.json", json.dumps(sorted(numbers)))


def stratum_of(document: Document, settings: StratifiedSampleSettings) -> str:
    """The stratum of a document; UNKNOWN where its metadata do not tell."""
    value: Any = document.metadata
    for key in settings.field.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    text = str(value).strip() if isinstance(value, str | int | float) else ""
    return (text[: settings.characters] if settings.characters else text) or UNKNOWN


def draw_key(seed: int, document: Document) -> tuple[str, str]:
    """What a document is drawn by, and its id, for those of the same text and id."""
    text = f"{seed}\0{document.id}\0{document.text}".encode("utf-8", "replace")
    return hashlib.blake2b(text, digest_size=8).hexdigest(), document.id


def planned(counts: Mapping[str, int], n: int, plan: str) -> dict[str, int]:
    """Documents to draw of each stratum, `n` in all.

    Proportional: the exact share rounded down, and one more where the remainders are largest. Equal: the same number
    of each, and of those with fewer all; what is left over goes to the strata with the most documents.
    """
    if plan == "proportional":
        total = sum(counts.values()) or 1
        wanted = {stratum: n * count // total for stratum, count in counts.items()}
        by_remainder = sorted(counts, key=lambda stratum: (-(n * counts[stratum] % total), stratum))
        for stratum in by_remainder[: n - sum(wanted.values())]:
            wanted[stratum] += 1
        return wanted
    wanted = Counter(dict.fromkeys(counts, 0))
    left = n
    for place, stratum in enumerate(sorted(counts, key=lambda stratum: (counts[stratum], stratum))):
        wanted[stratum] = min(counts[stratum], left // (len(counts) - place))
        left -= wanted[stratum]
    return dict(wanted)
