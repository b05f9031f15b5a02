"""Removal of near-duplicates: MinHash in datatrove's stages finds candidates, exact comparison decides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.io import get_datafolder
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.utils.hashing import HashConfig
from rensa import RMinHash  # type: ignore[attr-defined]

from nano3.config.checks import check
from nano3.curate.shards import read_shard
from nano3.curate.step import Context, Segment
from nano3.curate.steps.dedup.shingles import SEED, jaccard_from, run_hashes, shingles
from nano3.curate.steps.dedup.verdicts import (
    DedupStep,
    Stage,
    Verdict,
    corpus_reader,
    noted,
    save_array,
    write_verdicts,
)


@dataclass(frozen=True)
class NearDedupSettings:
    """Settings of `near-dedup` (report section 2.2.2 names the method and publishes no numbers: these are ours)."""

    ngram: int = 5
    """Words of a shingle."""
    buckets: int = 20
    """Groups of hashes; documents that agree in one of them are compared."""
    rows: int = 6
    """Hashes of a group. 20 x 6 finds a pair of similarity 0.8 with probability 0.997, one of 0.9 with 0.9999999."""
    verify: float = 0.8
    """Exact similarity (Jaccard, of shingles) to a document that is kept from which a document is dropped."""

    def __post_init__(self) -> None:
        check("near-dedup", self, ">=", 1, "ngram", "buckets", "rows")
        check("near-dedup", self, ">", 0, "verify")
        check("near-dedup", self, "<=", 1, "verify")

    @property
    def minhash(self) -> MinhashConfig:
        """As datatrove takes them."""
        hashes = HashConfig(precision=32, hash_fc="sha1")
        return MinhashConfig(self.ngram, self.buckets, self.rows, SEED, hash_config=hashes)


class NearDedup(DedupStep):
    """Keeps of documents that are nearly alike the first, and none that the existing corpus nearly has.

    Unlike clusters of union and find, no document is lost by a chain of others: each one that is dropped is at least
    `verify` similar to one that is kept.
    """

    Settings = NearDedupSettings
    repeated, in_corpus = "near-duplicate", "near-duplicate of the existing corpus"

    def before(self) -> list[PipelineStep]:
        """Signatures of all documents."""
        return [Signatures(self.context.work, self.settings)]

    def between(self) -> list[Segment]:
        """Signatures of the existing corpus, candidates by bucket, their shingles, the verdicts."""
        context, settings = self.context, self.settings
        work, tasks = context.work, context.tasks
        parts = {
            "candidates": (min(tasks, settings.buckets), Candidates(work, settings)),
            "shingles": (tasks + len(context.against), Shingles(context, settings.ngram)),
            "verify": (1, Verify(work, tasks, settings.verify)),
        }
        return [
            *self.corpus_segment(Signatures(work, settings, tasks)),
            *(Segment(f"{context.label}-{name}", n, [stage]) for name, (n, stage) in parts.items()),
        ]


class Signatures(MinhashDedupSignature):
    """datatrove's first stage, with the words and hashes of rensa, which is written in Rust."""

    def __init__(self, work: Path, settings: NearDedupSettings, offset: int = 0) -> None:
        """Write to `work/signatures`, under the task's rank plus `offset`.

        The tokenizer of datatrove's own constructor needs spaCy, so it is not called.
        """
        PipelineStep.__init__(self)
        self.work = work
        self.output_folder = get_datafolder(str(work / "signatures"))
        self.config = settings.minhash
        self.num_hashes = settings.buckets * settings.rows
        self.skip_existing_sigs = False
        self.offset = offset

    def get_shingles(self, text: str) -> np.ndarray:
        """The smallest hashes of a text's word n-grams, (hashes,) uint32; (0,) where it has no word: datatrove leaves
        it out. The n-grams come in batches, since all those of a long text take many times its memory."""
        found = [self._smallest(hashes) for hashes in run_hashes(text, self.config.n_grams)]
        if len(found) == 1:
            return found[0]
        return np.min(found, axis=0) if found else np.zeros(0, np.uint32)

    def _smallest(self, hashes: np.ndarray) -> np.ndarray:
        rows = RMinHash.digest_matrix_from_flat_token_hashes(hashes, [0, len(hashes)], self.num_hashes, SEED).to_rows()
        return np.array(rows[0], np.uint32)

    def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
        """What `get_shingles` gave, in buckets."""
        return shingles.reshape(self.config.num_buckets, -1).tolist()

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Read all documents."""
        super().run(noted(data, self.work, rank + self.offset), rank + self.offset, world_size)


class Candidates(Stage):
    """datatrove's second stage, pairs of neighbours of equal signature, for several buckets a task."""

    def __init__(self, work: Path, settings: NearDedupSettings) -> None:
        """Read `work/signatures`, write `work/pairs`."""
        super().__init__()
        self.work, self.settings = work, settings

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Every bucket whose number leaves `rank` when divided by the number of tasks."""
        folders = [str(self.work / name) for name in ("signatures", "pairs")]
        stage = MinhashDedupBuckets(*folders, config=self.settings.minhash)
        for bucket in range(rank, self.settings.buckets, world_size):
            stage.run(None, bucket, self.settings.buckets)


class Shingles(Stage):
    """Leaves the shingles of the documents that are candidates."""

    def __init__(self, context: Context, ngram: int) -> None:
        """Ranks from `context.tasks` on are of the existing corpus."""
        super().__init__()
        self.context, self.ngram = context, ngram

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Read the documents of one task again."""
        work = self.context.work
        pairs = np.concatenate([*read_pairs(work), np.zeros((0, 2, 2), np.uint32)]).reshape(-1, 2)
        members = np.unique(pairs[pairs[:, 0] == rank, 1])
        wanted, sets = set(members.tolist()), []
        for number, document in enumerate(self._documents(rank) if wanted else ()):
            if number in wanted:
                sets.append(shingles(document.text, self.ngram))
        ends = np.cumsum([0, *map(len, sets)])
        save_array(work / "shingles" / f"{rank:05d}.members.npy", members)
        save_array(work / "shingles" / f"{rank:05d}.ends.npy", ends)
        save_array(work / "shingles" / f"{rank:05d}.npy", np.concatenate([*sets, np.zeros(0, np.uint64)]))

    def _documents(self, rank: int) -> Iterator[Any]:
        own = self.context.tasks
        if rank < own:
            return read_shard(self.context.work / "documents", rank)
        return corpus_reader(self.context).run(None, rank - own)


class Verify(Stage):
    """Verdicts: in order, a document is dropped when it is similar enough to one that is kept."""

    def __init__(self, work: Path, tasks: int, verify: float) -> None:
        """Ranks from `tasks` on are of the existing corpus, all of whose documents are kept."""
        super().__init__()
        self.work, self.tasks, self.verify = work, tasks, verify

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """One task for all; the shingles stay on disk until they are compared."""
        groups = _groups(read_pairs(self.work))
        kept: dict[int, list[tuple[int, int]]] = {}
        verdicts = [np.zeros(n, np.uint8) for n in self._counts()]
        originals: list[list[tuple[int, int, float]]] = [[] for _ in verdicts]
        sets = _Sets(self.work / "shingles")
        for place in sorted(groups, key=lambda place: (place[0] < self.tasks, place)):
            similar = self._similar(place, groups[place], kept, sets) if place[0] < self.tasks else None
            if similar is not None:
                in_corpus = similar[0] >= self.tasks
                verdicts[place[0]][place[1]] = Verdict.IN_CORPUS if in_corpus else Verdict.REPEATED
                originals[place[0]].append(similar)
            else:
                for group in groups[place]:
                    kept.setdefault(group, []).append(place)
        for own, array in enumerate(verdicts):
            write_verdicts(self.work, own, array, originals[own])

    def _similar(
        self, place: tuple[int, int], groups: list[int], kept: dict[int, list[tuple[int, int]]], sets: _Sets
    ) -> tuple[int, int, float] | None:
        """A kept document of the same groups that the one at `place` is similar to, and how much: one of the corpus,
        if any."""
        candidates = {other for group in groups for other in kept.get(group, ())}
        own = sets[place]
        for other in sorted(candidates, key=lambda other: (other[0] < self.tasks, other)):
            if similarity := jaccard_from(self.verify, own, sets[other]):
                return *other, similarity
        return None

    def _counts(self) -> list[int]:
        """Documents of each task of the input."""
        counts = []
        for rank in range(self.tasks):
            counts.append(sum(1 for _ in read_shard(self.work / "documents", rank)))
        return counts


class _Sets:
    """Shingles of documents by place: rank and number."""

    def __init__(self, folder: Path) -> None:
        self._files = {}
        for path in folder.glob("*.members.npy"):
            name = path.name.partition(".")[0]
            members, ends = np.load(path).tolist(), np.load(folder / f"{name}.ends.npy")
            flat = np.load(folder / f"{name}.npy", mmap_mode="r") if ends[-1] else np.zeros(0, np.uint64)
            self._files[int(name)] = dict(zip(members, range(len(members)), strict=True)), ends, flat

    def __getitem__(self, place: tuple[int, int]) -> np.ndarray:
        index, ends, flat = self._files[place[0]]
        i = index[place[1]]
        return flat[ends[i] : ends[i + 1]]


def read_pairs(work: Path) -> list[np.ndarray]:
    """Neighbours of equal signature, a bucket each: (pairs, 2, 2) uint32, rank and number of both documents."""
    return [np.fromfile(path, "<u4").reshape(-1, 2, 2) for path in sorted((work / "pairs").glob("*.dups"))]


def _groups(buckets: list[np.ndarray]) -> dict[tuple[int, int], list[int]]:
    """The groups of equal signature that each document belongs to: in its bucket, a pair begins a new group unless its
    first document is the second one of the pair before."""
    groups: dict[tuple[int, int], list[int]] = {}
    number = 0
    for pairs in buckets:
        before = None
        for first, second in pairs.tolist():
            one, other = tuple(first), tuple(second)
            if one != before:
                number += 1
                groups.setdefault(one, []).append(number)
            groups.setdefault(other, []).append(number)
            before = other
    return groups
