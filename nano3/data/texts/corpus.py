"""Documents of one category over its prepared folders, and the held-out split by content."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nano3.data.tokens.shards import ShardFolder


class Corpus:
    """A chosen list of documents, or parts of documents.

    Attributes:
        lengths: (documents,) int64, tokens of each.
        n_bytes: (documents,) int64, bytes of its text.
        hashes: (documents,) uint64, hash of its text.
    """

    def __init__(self, folders: Sequence[ShardFolder]) -> None:
        self._folders = list(folders)
        self._first = np.cumsum([0, *(len(folder) for folder in folders)])
        self._chosen = np.arange(self._first[-1])
        self._starts = np.zeros(len(self._chosen), np.int64)
        self.lengths = _column([folder.lengths for folder in folders], np.int64)
        self.n_bytes = _column([folder.n_bytes for folder in folders], np.int64)
        self.hashes = _column([folder.hashes for folder in folders], np.uint64)

    def __len__(self) -> int:
        return len(self._chosen)

    def tokens(self, document: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Ids [start, stop) of a document, in their stored type."""
        folder, number = self._locate(document)
        first, length = int(self._starts[document]), int(self.lengths[document])
        return folder.tokens(number, first + start, first + (length if stop is None else min(stop, length)))

    def name(self, document: int) -> str:
        """Name of a document."""
        folder, number = self._locate(document)
        return folder.name(number)

    def pick(self, documents: np.ndarray) -> Corpus:
        """The corpus of these documents only, in this order."""
        picked = Corpus(self._folders)
        for column in ("_chosen", "_starts", "lengths", "n_bytes", "hashes"):
            setattr(picked, column, getattr(self, column)[documents])
        return picked

    def shorten(self, document: int, start: int, stop: int, n_bytes: int) -> Corpus:
        """The same documents with one of them reduced to tokens [start, stop), which are `n_bytes` of text."""
        changed = self.pick(np.arange(len(self)))
        changed._starts[document] += start
        changed.lengths[document], changed.n_bytes[document] = stop - start, n_bytes
        return changed

    @classmethod
    def merge(cls, corpora: Sequence[Corpus]) -> Corpus:
        """All documents of several corpora."""
        merged = cls([folder for corpus in corpora for folder in corpus._folders])
        offsets = np.cumsum([0, *(corpus._first[-1] for corpus in corpora)])
        merged._chosen = _column([corpus._chosen + offsets[i] for i, corpus in enumerate(corpora)], np.int64)
        for column in ("_starts", "lengths", "n_bytes", "hashes"):
            setattr(merged, column, np.concatenate([getattr(corpus, column) for corpus in corpora]))
        return merged

    def _locate(self, document: int) -> tuple[ShardFolder, int]:
        number = int(self._chosen[document])
        folder = int(np.searchsorted(self._first, number, side="right")) - 1
        return self._folders[folder], number - int(self._first[folder])


def split(corpus: Corpus, fraction: float, seed: int) -> tuple[Corpus, Corpus]:
    """(training, held-out) documents; a document's side depends on its text, `fraction` and `seed` alone."""
    held = is_heldout(corpus.hashes, fraction, seed)
    return corpus.pick(np.flatnonzero(~held)), corpus.pick(np.flatnonzero(held))


def shuffled(corpus: Corpus, seed: int) -> Corpus:
    """Documents in an order that depends on their texts alone; any first part is an even sample."""
    return corpus.pick(np.argsort(_mix_seed(corpus.hashes, seed), kind="stable"))


def is_heldout(hashes: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Whether documents with these content hashes are held out: their mixed hash lies in the first `fraction`."""
    return (_mix_seed(hashes, seed) >> np.uint64(11)).astype(np.float64) / float(1 << 53) < fraction


def _mix_seed(hashes: np.ndarray, seed: int) -> np.ndarray:
    return mix(hashes ^ mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)))


def mix(values: np.ndarray) -> np.ndarray:
    """splitmix64, uint64 to uint64, one to one and well spread; NumPy's own RNGs may change between versions."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


def _column(columns: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *columns])
