"""Documents in one endless stream, cut into rows.

A document of n tokens takes n + 1 places: the end-of-document token, then its own. That token is the start marker of
the document that follows and the end marker of the one before. Row i is tokens [i*T, i*T + T) of the stream and its
targets are the same shifted by one, so every token of every document is predicted exactly once, its first token from
the start marker and its end from its last token; nothing is dropped or padded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from nano3.data.texts.corpus import Corpus, mix
from nano3.data.tokens.batch import IGNORE, Row

Segment = tuple[int, int, int]
"""(document, start, stop): places [start, stop) of the document, the start marker being place 0."""
EPOCHS_KEPT = 2


class PackedStream:
    """The documents of one category, epoch after epoch, each epoch in its own order."""

    def __init__(self, corpus: Corpus, eos_id: int, seed: int) -> None:
        assert len(corpus) > 0, "a stream needs a document"
        self.corpus = corpus
        self._eos_id = eos_id
        self._seed = seed & 0xFFFFFFFFFFFFFFFF
        self.epoch_tokens = int(corpus.lengths.sum()) + len(corpus)
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def with_seq_len(self, seq_len: int, lengths: Sequence[int] = ()) -> PackedStream:
        """The same stream: rows of every length are cut from it."""
        del seq_len, lengths
        return self

    def rows(self, seq_len: int) -> int:
        """Rows of one epoch."""
        return max(1, self.epoch_tokens // seq_len)

    def passes(self, rows: float, seq_len: int) -> float:
        """Times that so many rows go through the documents."""
        return rows * seq_len / self.epoch_tokens

    def row(self, number: int, seq_len: int) -> Row:
        """Row `number` of the stream."""
        start = number * seq_len
        ids = join_pieces(self.corpus, list(self.segments(start, start + seq_len + 1)), self._eos_id)
        segments = list(self.segments(start, start + seq_len))
        return Row(ids[:-1], ids[1:], number_pieces(segments), name_pieces(self.corpus, segments))

    def segments(self, start: int, stop: int) -> Iterator[Segment]:
        """The pieces of documents at places [start, stop) of the stream."""
        while start < stop:
            epoch, offset = divmod(start, self.epoch_tokens)
            order, ends = self._epoch(epoch)
            for segment in _segments(order, ends, offset, offset + stop - start):
                yield segment
                start += segment[2] - segment[1]

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Documents in the order of an epoch, and the end of each on that epoch's stretch of the stream."""
        known = self._epochs.get(epoch)
        if known is None:
            while len(self._epochs) >= EPOCHS_KEPT:
                self._epochs.pop(next(iter(self._epochs)), None)
            key = mix(np.array([epoch], np.uint64) ^ mix(np.array([self._seed], np.uint64)))
            order = np.argsort(mix(np.arange(len(self.corpus), dtype=np.uint64) ^ key), kind="stable")
            known = self._epochs[epoch] = (order, np.cumsum(self.corpus.lengths[order] + 1))
        return known


class PackedDocuments:
    """Documents once, in their order; the last row is filled up with padding: end markers that are not valid."""

    def __init__(self, corpus: Corpus, eos_id: int) -> None:
        self.corpus = corpus
        self._eos_id = eos_id
        self._order = np.arange(len(corpus))
        self._ends = np.cumsum(corpus.lengths + 1)
        self._byte_ends = np.cumsum(corpus.n_bytes)
        self.n_tokens = int(self._ends[-1]) if len(corpus) else 0

    def row(self, number: int, seq_len: int) -> Row:
        """Row `number`: targets include the end of the last document; padding is a document of its own."""
        start = number * seq_len
        stop = min(start + seq_len, self.n_tokens)
        segments = self.segments(start, stop)
        ids = join_pieces(self.corpus, self.segments(start, min(stop + 1, self.n_tokens)), self._eos_id)
        tokens = np.full(seq_len, self._eos_id, np.int64)
        targets = np.full(seq_len, IGNORE, np.int64)
        ids_of_row = np.full(seq_len, len(segments), np.int32)
        used = stop - start
        tokens[:used] = ids[:used]
        targets[: used - 1] = ids[1:used]
        targets[used - 1] = ids[used] if len(ids) > used else self._eos_id
        ids_of_row[:used] = number_pieces(segments)
        return Row(tokens, targets, ids_of_row, name_pieces(self.corpus, segments), np.arange(seq_len) < used)

    def bytes_before(self, place: int) -> int:
        """Bytes of text that the first `place` targets stand for; inside a document in proportion to its tokens."""
        whole = int(np.searchsorted(self._ends, place, side="right"))
        total = int(self._byte_ends[whole - 1]) if whole else 0
        if whole < len(self._order):
            inside = place - (int(self._ends[whole - 1]) if whole else 0)
            length = int(self.corpus.lengths[whole])
            total += int(self.corpus.n_bytes[whole]) * inside // length
        return total

    def segments(self, start: int, stop: int) -> list[Segment]:
        """The pieces of documents at places [start, stop)."""
        return list(_segments(self._order, self._ends, start, stop))


def _segments(order: np.ndarray, ends: np.ndarray, start: int, stop: int) -> Iterator[Segment]:
    """Pieces at places [start, stop) of documents laid end to end, as far as they reach."""
    place = int(np.searchsorted(ends, start, side="right"))
    while start < stop and place < len(order):
        begin = int(ends[place - 1]) if place else 0
        end = min(int(ends[place]), stop)
        yield int(order[place]), start - begin, end - begin
        start = end
        place += 1


def join_pieces(corpus: Corpus, segments: list[Segment], eos_id: int) -> np.ndarray:
    """Ids of pieces one after the other, int64, start markers included."""
    ids = np.empty(sum(stop - start for _, start, stop in segments), np.int64)
    filled = 0
    for document, start, stop in segments:
        if start == 0:
            ids[filled] = eos_id
            filled, start = filled + 1, 1
        ids[filled : filled + stop - start] = corpus.tokens(document, start - 1, stop - 1)
        filled += stop - start
    return ids


def number_pieces(segments: list[Segment]) -> np.ndarray:
    """(places,) int32: 0 for every place of the first piece, 1 for the second, and so on."""
    return np.repeat(np.arange(len(segments), dtype=np.int32), [stop - start for _, start, stop in segments])


def name_pieces(corpus: Corpus, segments: list[Segment]) -> list[str]:
    """Name of the document of each piece."""
    return [corpus.name(document) for document, _, _ in segments]
