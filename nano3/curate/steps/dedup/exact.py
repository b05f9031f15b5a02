"""Removal of documents whose text occurred before, by a hash of 128 bits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.pipeline.base import PipelineStep

from nano3.curate.pieces import pieces
from nano3.curate.step import Segment
from nano3.curate.steps.dedup.verdicts import (
    DedupStep,
    Stage,
    Verdict,
    noted,
    places,
    save_array,
    write_verdicts,
)


@dataclass(frozen=True)
class ExactDedupSettings:
    """Settings of `exact-dedup`."""

    ignore_white_space: bool = False
    """Texts that differ in white space alone are the same."""


class ExactDedup(DedupStep):
    """Keeps the first document of every text."""

    Settings = ExactDedupSettings

    def before(self) -> list[PipelineStep]:
        """Hashes of all documents."""
        return [WriteHashes(self.context.work, self.settings.ignore_white_space)]

    def between(self) -> list[Segment]:
        """Hashes of the existing corpus, then the verdicts."""
        context = self.context
        corpus = self.corpus_segment(WriteHashes(context.work, self.settings.ignore_white_space, context.tasks))
        return [*corpus, Segment(f"{context.label}-match", 1, [MatchHashes(context.work, context.tasks)])]


class WriteHashes(Stage):
    """Leaves the hash of every document: (documents, 2) uint64 a task."""

    def __init__(self, work: Path, ignore_white_space: bool, offset: int = 0) -> None:
        """Write to `work/hashes`, under the task's rank plus `offset`."""
        super().__init__()
        self.work, self.ignore_white_space, self.offset = work, ignore_white_space, offset

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Read all documents."""
        hashes = b"".join(self._hash(document.text) for document in noted(data, self.work, rank + self.offset))
        save_array(self.work / "hashes" / f"{rank + self.offset:05d}.npy", np.frombuffer(hashes, "<u8").reshape(-1, 2))

    def _hash(self, text: str) -> bytes:
        found = hashlib.blake2b(digest_size=16)
        for piece in pieces(text):
            seen = " ".join(["", *piece.split()]) if self.ignore_white_space else piece
            found.update(seen.encode("utf-8", "surrogatepass"))
        return found.digest()


class MatchHashes(Stage):
    """Verdicts: of equal hashes the first is kept, and none that the existing corpus has."""

    def __init__(self, work: Path, tasks: int) -> None:
        """Tasks of higher rank than `tasks` are of the existing corpus."""
        super().__init__()
        self.work, self.tasks = work, tasks

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """One task for all."""
        arrays = [np.load(path) for path in sorted((self.work / "hashes").glob("*.npy"))]
        counts = [len(array) for array in arrays]
        ranks, numbers = places(counts)
        hashes = np.concatenate(arrays)
        is_own = ranks < self.tasks
        order = np.lexsort((numbers, ranks, is_own, hashes[:, 1], hashes[:, 0]))
        starts = np.ones(len(order), bool)
        starts[1:] = (hashes[order[1:]] != hashes[order[:-1]]).any(axis=1)
        firsts = order[starts][np.cumsum(starts) - 1]
        verdicts = np.empty(len(order), np.uint8)
        verdicts[order] = np.where(
            ~is_own[firsts] & is_own[order], Verdict.IN_CORPUS, np.where(starts, Verdict.KEPT, Verdict.REPEATED)
        )
        originals = np.empty(len(order), int)
        originals[order] = firsts
        for own in range(self.tasks):
            found = originals[(ranks == own) & (verdicts != Verdict.KEPT)]
            repeated = np.stack([ranks[found], numbers[found], np.ones(len(found))], axis=1)
            write_verdicts(self.work, own, verdicts[ranks == own], repeated)
