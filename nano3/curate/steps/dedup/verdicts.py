"""What the steps that remove duplicates share: a barrier, an existing corpus, and a verdict on every document."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from numpy.typing import ArrayLike

from nano3.curate.ledger import read_accounts
from nano3.curate.step import Context, Segment, Step
from nano3.curate.steps.read import Read, ReadSettings
from nano3.files import write_atomic


class Verdict(IntEnum):
    """What becomes of a document."""

    KEPT = 0
    REPEATED = 1
    IN_CORPUS = 2


class DedupStep(Step):
    """A step that drops what an earlier document of the input, or one of the existing corpus, says already.

    A subclass gives `before`, and `between` ends with a step that writes the verdicts by `write_verdicts`.
    """

    barrier = True
    repeated, in_corpus = "duplicate", "in the existing corpus"
    """Reasons."""

    def process(self, documents: Iterator[Document]) -> Iterator[Document]:
        """Documents that are no duplicates, in order."""
        self._note_corpus()
        reasons = {Verdict.REPEATED: self.repeated, Verdict.IN_CORPUS: self.in_corpus}
        verdicts = read_verdicts(self.context.work, self.rank)
        originals = iter(read_originals(self.context.work, self.rank))
        for document, verdict in zip(documents, verdicts, strict=True):
            if verdict:
                original = partial(_original, self.context.work, next(originals))
                self.drop(document, reasons[Verdict(int(verdict))], original=original)
            else:
                yield document

    def _note_corpus(self) -> None:
        """Tell what could not be read of the existing corpus, with which nothing was compared."""
        if self.rank or not self.context.against:
            return
        for reason, dropped in read_accounts(corpus_context(self.context).accounts.glob("*.json")).dropped.items():
            self.note(f"left out of the existing corpus: {reason}", dropped.size.documents)

    def corpus_segment(self, *steps: PipelineStep) -> list[Segment]:
        """A segment that reads the existing corpus, if there is one, and hands it to `steps`."""
        context = self.context
        if not context.against:
            return []
        return [Segment(f"{context.label}-corpus", len(context.against), [corpus_reader(context), *steps])]


def corpus_reader(context: Context) -> Read:
    """Reads the existing corpus; what it leaves out is a note of the step, and no part of the run's accounts."""
    return Read(ReadSettings(), corpus_context(context), context.against)


def corpus_context(context: Context) -> Context:
    """What the reader of the existing corpus knows of the run."""
    return replace(context, label=f"{context.label}-corpus", limit=0)


def noted(documents: Iterable[Document], work: Path, rank: int) -> Iterator[Document]:
    """The documents of one task; their names are left for `_original`, which looks up few of them."""
    folder = work / "names"
    folder.mkdir(parents=True, exist_ok=True)
    temporary, ends = folder / f".{rank:05d}.tmp", array("Q", [0])
    with temporary.open("wb") as file:
        for document in documents:
            ends.append(ends[-1] + file.write(document.id.encode("utf-8", "replace")))
            yield document
    save_array(folder / f"{rank:05d}.npy", np.frombuffer(ends, np.uint64))
    os.replace(temporary, folder / f"{rank:05d}.txt")


def _original(work: Path, place: np.ndarray) -> tuple[str, float]:
    """Name of the document at a place, and the similarity to it."""
    rank, number, similarity = place.tolist()
    start, end = np.load(work / "names" / f"{int(rank):05d}.npy", mmap_mode="r")[int(number) :][:2].tolist()
    with (work / "names" / f"{int(rank):05d}.txt").open("rb") as file:
        file.seek(start)
        return file.read(end - start).decode("utf-8"), round(similarity, 3)


def read_originals(work: Path, rank: int) -> np.ndarray:
    """What `write_verdicts` left of one task's originals."""
    return np.load(work / "originals" / f"{rank:05d}.npy")


def write_verdicts(work: Path, rank: int, verdicts: np.ndarray, originals: ArrayLike) -> None:
    """Leave the verdicts on the documents of one task, in order.

    Args:
        work: the step's own folder.
        rank: of the task.
        verdicts: (documents,).
        originals: (documents to drop, 3): rank and number of the document that each repeats, and the similarity to it.
    """
    save_array(work / "originals" / f"{rank:05d}.npy", np.asarray(originals, float).reshape(-1, 3))
    save_array(work / "verdicts" / f"{rank:05d}.npy", verdicts.astype(np.uint8))


def read_verdicts(work: Path, rank: int) -> np.ndarray:
    """The verdicts on the documents of one task."""
    return np.load(work / "verdicts" / f"{rank:05d}.npy")


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array as .npy, whole or not at all."""
    from io import BytesIO

    data = BytesIO()
    np.save(data, array)
    write_atomic(path, data.getvalue())


def places(counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Rank and number within it of every document of tasks with so many each."""
    ranks = np.repeat(np.arange(len(counts)), counts)
    numbers = np.concatenate([np.arange(n) for n in counts]) if len(counts) else np.zeros(0, int)
    return ranks, numbers


class Stage(PipelineStep):
    """A step that is no part of the user's pipeline: it works on files that others left in a folder."""

    type, name = "nano3", "stage"

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Do the work of one task."""
        raise NotImplementedError
