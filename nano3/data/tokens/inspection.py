"""What a prepared folder holds, for people and for scripts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nano3.config.schema import DataConfig
from nano3.data.texts.corpus import Corpus, split
from nano3.data.tokens.packing import PackedStream
from nano3.data.tokens.shards import ShardFolder
from nano3.data.tokens.tokenizer import Tokenizer

SAMPLE_TOKENS = 160


@dataclass(frozen=True)
class SamplePiece:
    """A stretch of one document inside a sample of the packed stream."""

    document: str
    first_token: int
    """0 where the document begins inside the sample."""
    text: str


@dataclass(frozen=True)
class Inspection:
    """Facts about a prepared folder."""

    path: str
    documents: int
    tokens: int
    bytes: int
    bytes_per_token: float
    vocab_size: int
    dtype: str
    shards: int
    heldout_documents: int
    heldout_bytes: int
    heldout_share: float
    """Held-out bytes over all bytes."""
    longest_document: str
    longest_tokens: int
    skipped: dict[str, int]
    skipped_names: dict[str, list[str]]
    """Some of the files among them, by reason."""
    sources: list[str]
    samples: list[list[SamplePiece]]
    """Stretches of the packed stream."""


def inspect(
    path: str | Path, *, samples: int = 2, heldout_fraction: float | None = None, seed: int | None = None
) -> Inspection:
    """Verify a prepared folder and describe it; the split is that of the default settings unless told otherwise.

    Raises:
        UserError: not a prepared folder, or a damaged one.
    """
    defaults = DataConfig()
    seed = defaults.seed if seed is None else seed
    folder = ShardFolder(path)
    tokenizer = Tokenizer.load(folder.folder / "tokenizer")
    corpus = Corpus([folder])
    _, heldout = split(corpus, defaults.heldout_fraction if heldout_fraction is None else heldout_fraction, seed)
    longest = int(corpus.lengths.argmax())
    tokens, n_bytes, heldout_bytes = (int(column.sum()) for column in (corpus.lengths, corpus.n_bytes, heldout.n_bytes))
    return Inspection(
        path=str(path),
        documents=len(corpus),
        tokens=tokens,
        bytes=n_bytes,
        bytes_per_token=n_bytes / tokens,
        vocab_size=folder.manifest.vocab_size,
        dtype=folder.manifest.dtype,
        shards=folder.manifest.shards,
        heldout_documents=len(heldout),
        heldout_bytes=heldout_bytes,
        heldout_share=heldout_bytes / n_bytes,
        longest_document=corpus.name(longest),
        longest_tokens=int(corpus.lengths[longest]),
        skipped=folder.manifest.skipped,
        skipped_names=folder.manifest.named,
        sources=folder.manifest.sources,
        samples=[_sample(corpus, tokenizer, seed, number, samples) for number in range(samples)],
    )


def _sample(corpus: Corpus, tokenizer: Tokenizer, seed: int, number: int, samples: int) -> list[SamplePiece]:
    """A stretch of the first epoch around the end of a document, the samples spread over the epoch."""
    stream = PackedStream(corpus, tokenizer.eos_id, seed)
    middle = (2 * number + 1) * stream.epoch_tokens // (2 * samples)
    first = next(stream.segments(middle, middle + 1))
    end = middle + int(corpus.lengths[first[0]]) - first[1] + 1
    pieces = []
    for document, start, stop in stream.segments(max(0, end - SAMPLE_TOKENS // 2), end + SAMPLE_TOKENS // 2):
        first = max(start - 1, 0)
        ids = corpus.tokens(document, first, stop - 1)
        pieces.append(SamplePiece(corpus.name(document), first, tokenizer.decode(np.asarray(ids).tolist())))
    return pieces
