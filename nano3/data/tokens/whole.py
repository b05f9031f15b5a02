"""Rows of whole documents: none is cut, so what a document's end asks for stands in the same row.

A document of n tokens takes n + 1 places: the end-of-document token that starts it, then its own. Its targets are its
tokens and the end-of-document token after them, so every token and the end are predicted, once. What is left of a row
is padding: end-of-document tokens in a document of their own, marked as not valid, whose targets count for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nano3.config.errors import UserError
from nano3.data.texts.corpus import Corpus, mix
from nano3.data.tokens.batch import IGNORE, Row
from nano3.data.tokens.packing import Segment, join_pieces, name_pieces, number_pieces

OPEN_ROWS = 64
"""Rows that are looked at for room, the oldest first; where none has room the oldest is closed."""


class WholeDocuments:
    """The documents of one category that rows of one length read, packed once by first fit in a random order.

    A document belongs to the shortest of the run's lengths that holds it. A length without documents of its own reads
    the shorter ones. Which documents share a row is the same in every epoch (they do not see each other); the order
    of the rows is the caller's.

    Attributes:
        epoch_tokens: places of these documents, their markers counted, padding not.
    """

    def __init__(
        self, corpus: Corpus, eos_id: int, seed: int, seq_len: int, lengths: Sequence[int] = (), name: str = "this"
    ) -> None:
        """`lengths`: all row lengths of the run; only `seq_len` where empty. `name`: category, for the error.

        Raises:
            UserError: no document fits in a row of `seq_len`.
        """
        self.corpus = corpus
        self._eos_id, self._seed, self._seq_len, self._name = eos_id, seed, seq_len, name
        places = corpus.lengths + 1
        shorter = max((length for length in lengths if length < seq_len), default=0)
        chosen = np.flatnonzero((places <= seq_len) & (places > shorter))
        if not len(chosen):
            chosen = np.flatnonzero(places <= seq_len)
        if not len(chosen):
            drop = "drop that length, or " if len(set(lengths) | {seq_len}) > 1 else ""
            raise UserError(
                f"no document of {name} fits whole in a row of {seq_len:,} tokens (the shortest takes "
                f"{int(places.min()):,}): {drop}make documents of at most {seq_len - 1:,} tokens, counted with the "
                "tokenizer of this run (nano3 data generate --tokenizer PATH; another one gives other counts)"
            )
        key = mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64))
        chosen = chosen[np.argsort(mix(corpus.hashes[chosen] ^ key), kind="stable")]
        self.epoch_tokens = int(places[chosen].sum())
        self._rows = _first_fit(chosen, places[chosen], seq_len)

    def with_seq_len(self, seq_len: int, lengths: Sequence[int] = ()) -> WholeDocuments:
        """The documents of the same category for rows of another length."""
        return WholeDocuments(self.corpus, self._eos_id, self._seed, seq_len, lengths, self._name)

    def rows(self, seq_len: int) -> int:
        """Rows of one epoch."""
        assert seq_len == self._seq_len, "rows are packed for one length"
        return len(self._rows)

    def passes(self, rows: float, seq_len: int) -> float:
        """Times that so many rows go through these documents."""
        return rows / self.rows(seq_len)

    def row(self, number: int, seq_len: int) -> Row:
        """Row `number`; the rows come round again after one epoch."""
        documents = self._rows[number % self.rows(seq_len)]
        segments: list[Segment] = [(d, 0, int(self.corpus.lengths[d]) + 1) for d in documents]
        ids = join_pieces(self.corpus, segments, self._eos_id)
        tokens = np.full(seq_len, self._eos_id, np.int64)
        targets = np.full(seq_len, IGNORE, np.int64)
        document_ids = np.full(seq_len, len(segments), np.int32)
        used = len(ids)
        tokens[:used] = ids
        targets[:used] = np.append(ids[1:], self._eos_id)
        document_ids[:used] = number_pieces(segments)
        return Row(tokens, targets, document_ids, name_pieces(self.corpus, segments), np.arange(seq_len) < used)


def _first_fit(documents: np.ndarray, places: np.ndarray, seq_len: int) -> list[list[int]]:
    """Documents of each row: every document goes into the oldest open row that has room, else into a new one."""
    rows: list[list[int]] = []
    room = np.zeros(0, np.int64)
    for document, needed in zip(documents.tolist(), places.tolist(), strict=True):
        fits = room >= needed
        place = int(fits.argmax()) if len(room) else 0
        if len(room) and fits[place]:
            rows[len(rows) - len(room) + place].append(document)
            room[place] -= needed
        else:
            rows.append([document])
            room = np.append(room, seq_len - needed)[-OPEN_ROWS:]
    return rows
