"""Batches by global sequence number: the same whatever the batch size, the number of ranks or the point of resuming."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from copy import copy
from typing import TYPE_CHECKING

from nano3.data.texts.corpus import Corpus
from nano3.data.tokens.batch import Batch, Row, stack
from nano3.data.tokens.blend import Blend
from nano3.data.tokens.packing import PackedDocuments, PackedStream
from nano3.data.tokens.permutation import permuted
from nano3.data.tokens.whole import WholeDocuments

if TYPE_CHECKING:
    from nano3.data.tokens.tokenizer import Tokenizer


class TokenSource:
    """Endless training rows. Row i depends on the corpora, the blend, the seed, seq_len and i alone.

    The rows of an epoch come in a random order, so that a batch is not a run of neighbours from one document.
    """

    def __init__(
        self,
        corpora: Mapping[str, Corpus],
        blend: Blend,
        *,
        seq_len: int,
        eos_id: int,
        seed: int,
        whole: Collection[str] = (),
    ) -> None:
        """`whole`: categories whose documents are never cut, see whole.py; the others are endless streams.

        Raises:
            UserError: no document of such a category fits in a row.
        """
        self.blend = blend
        self.seq_len = seq_len
        self._seed = seed
        self.whole = frozenset(whole)
        self._streams: dict[str, PackedStream | WholeDocuments] = {
            name: WholeDocuments(corpora[name], eos_id, seed, seq_len, name=name)
            if name in whole
            else PackedStream(corpora[name], eos_id, seed)
            for name in blend.names
        }

    def with_seq_len(self, seq_len: int, lengths: Iterable[int] = ()) -> TokenSource:
        """The same categories in rows of another length, in an order of their own.

        Args:
            seq_len: tokens of a row.
            lengths: all row lengths of the run. A document that is never cut is read at the shortest of them that
                holds it, at `seq_len` alone where they are not given.

        Raises:
            UserError: no document of a category that is never cut fits in a row.
        """
        other, listed = copy(self), sorted(lengths)
        other.seq_len = seq_len
        other._streams = {name: stream.with_seq_len(seq_len, listed) for name, stream in self._streams.items()}
        return other

    @property
    def n_tokens(self) -> int:
        """Tokens of one pass over every category, markers included, of the documents that rows here hold."""
        return sum(stream.epoch_tokens for stream in self._streams.values())

    def sequence(self, number: int) -> Row:
        """Row of one global sequence number."""
        name, earlier = self.blend.category(number)
        stream = self._streams[name]
        per_epoch = stream.rows(self.seq_len)
        epoch, place = divmod(earlier, per_epoch)
        return stream.row(epoch * per_epoch + permuted(place, per_epoch, (self._seed, name, epoch)), self.seq_len)

    def batch(self, start: int, count: int) -> Batch:
        """Rows start, start + 1, ... start + count - 1."""
        return stack([self.sequence(number) for number in range(start, start + count)])

    def epochs(self, sequences: float) -> dict[str, float]:
        """Passes over each category after so many sequences; over the documents of this length where none is cut."""
        return {
            name: stream.passes(sequences * float(self.blend.shares[name]), self.seq_len)
            for name, stream in self._streams.items()
        }


class HeldoutSource:
    """Held-out rows: every document once, every one of its tokens and its end predicted exactly once.

    Bits per byte of all rows: sum of -log p over all targets / ln 2 / `n_bytes`.
    """

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, seq_len: int) -> None:
        self.corpus = corpus
        self.seq_len = seq_len
        self._tokenizer = tokenizer
        self._packed = PackedDocuments(corpus, tokenizer.eos_id)

    def __len__(self) -> int:
        """Number of rows; 0 when nothing is held out."""
        return (self._packed.n_tokens + self.seq_len - 1) // self.seq_len

    def with_seq_len(self, seq_len: int) -> HeldoutSource:
        """The same documents in rows of another length."""
        return HeldoutSource(self.corpus, self._tokenizer, seq_len)

    @property
    def n_tokens(self) -> int:
        """Targets of all rows."""
        return self._packed.n_tokens

    @property
    def n_bytes(self) -> int:
        """Bytes of text of all documents."""
        return int(self.corpus.n_bytes.sum())

    def sequence(self, number: int) -> Row:
        """One row."""
        if not 0 <= number < len(self):
            raise IndexError(f"held-out row {number} of {len(self)}")
        return self._packed.row(number, self.seq_len)

    def batch(self, start: int, count: int) -> Batch:
        """Rows from `start` on, `count` of them or as many as are left."""
        return stack([self.sequence(number) for number in range(start, min(start + count, len(self)))])

    def bytes_of(self, start: int, count: int) -> int:
        """Bytes of text that the targets of these rows stand for.

        Exact for documents that lie wholly inside; of one cut by the range, its bytes in proportion to its tokens.
        Ranges that follow each other add up exactly, all rows to `n_bytes`.
        """
        first, last = (min(row * self.seq_len, self.n_tokens) for row in (start, start + count))
        return self._packed.bytes_before(last) - self._packed.bytes_before(first)

    def texts(self) -> Iterator[str]:
        """Texts of all documents, in order."""
        for document in range(len(self.corpus)):
            yield self._tokenizer.decode(self.corpus.tokens(document).tolist())
