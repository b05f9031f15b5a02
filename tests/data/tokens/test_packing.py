from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nano3.data.texts.corpus import is_heldout, shuffled, split
from nano3.data.tokens.batch import IGNORE
from nano3.data.tokens.blend import Blend
from nano3.data.tokens.packing import PackedDocuments, PackedStream
from nano3.data.tokens.source import HeldoutSource, TokenSource

EOS = 2
LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=12)
SEQ_LEN = st.integers(1, 40)


def joined(rows):
    return tuple(np.concatenate([getattr(row, name) for row in rows]) for name in ("tokens", "targets"))


def documents_in(tokens: np.ndarray) -> list[list[int]]:
    """The stream cut at its markers; it begins with one."""
    assert tokens[0] == EOS
    return [part.tolist() for part in np.split(tokens, np.flatnonzero(tokens == EOS))[1:]]


@settings(max_examples=40, deadline=None)
@given(LENGTHS, SEQ_LEN)
def test_each_epoch_has_every_document_once_and_whole(corpus_of, lengths, seq_len):
    corpus = corpus_of(lengths)
    stream = PackedStream(corpus, EOS, seed=5)
    n_rows = 3 * stream.epoch_tokens // seq_len + 1
    tokens, targets = joined([stream.row(i, seq_len) for i in range(n_rows)])
    np.testing.assert_array_equal(tokens[1:], targets[:-1])
    expected = sorted([EOS, *corpus.tokens(d).tolist()] for d in range(len(corpus)))
    for epoch in range(3):
        stretch = tokens[epoch * stream.epoch_tokens : (epoch + 1) * stream.epoch_tokens]
        assert sorted(documents_in(stretch)) == expected


@settings(max_examples=40, deadline=None)
@given(LENGTHS, SEQ_LEN, st.integers(0, 30))
def test_document_ids_change_exactly_at_markers(corpus_of, lengths, seq_len, number):
    row = PackedStream(corpus_of(lengths), EOS, seed=5).row(number, seq_len)
    assert row.document_ids[0] == 0
    np.testing.assert_array_equal(np.diff(row.document_ids), row.tokens[1:] == EOS)
    assert len(row.documents) == row.document_ids[-1] + 1


def test_epochs_have_orders_of_their_own(corpus_of):
    corpus = corpus_of([4] * 12)
    stream = PackedStream(corpus, EOS, seed=5)
    first, second = (stream.row(i, stream.epoch_tokens).tokens.tolist() for i in range(2))
    other_seed = PackedStream(corpus, EOS, seed=6).row(0, stream.epoch_tokens).tokens.tolist()
    assert first != second
    assert first != other_seed
    assert PackedStream(corpus, EOS, seed=5).row(1, stream.epoch_tokens).tokens.tolist() == second


def test_a_category_shorter_than_a_row_repeats(corpus_of):
    row = PackedStream(corpus_of([2]), EOS, seed=0).row(0, 7)
    assert row.tokens.tolist() == [2, 10, 11, 2, 10, 11, 2]
    assert row.document_ids.tolist() == [0, 0, 0, 1, 1, 1, 2]


@settings(max_examples=20, deadline=None)
@given(SEQ_LEN, st.integers(0, 50), st.integers(1, 4), st.integers(1, 4))
def test_a_batch_does_not_depend_on_how_it_is_cut(corpus_of, seq_len, start, first, second):
    corpora = {"a": corpus_of([5, 9, 3, 8]), "b": corpus_of([2, 30])}
    source = TokenSource(corpora, Blend({"a": 70.0, "b": 30.0}), seq_len=seq_len, eos_id=EOS, seed=1)
    whole, left = source.batch(start, first + second), source.batch(start, first)
    right = source.batch(start + first, second)
    for name in ("tokens", "targets", "document_ids"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(left, name), getattr(right, name)]))
    assert whole.documents == list(dict.fromkeys(left.documents + right.documents))
    assert whole.tokens.shape == (first + second, seq_len)
    assert (whole.tokens.dtype, whole.targets.dtype, whole.document_ids.dtype) == (
        torch.int64,
        torch.int64,
        torch.int32,
    )
    assert whole.n_targets == (first + second) * seq_len


@settings(max_examples=40, deadline=None)
@given(LENGTHS, SEQ_LEN)
def test_heldout_predicts_every_token_and_every_end_once(corpus_of, lengths, seq_len):
    corpus = corpus_of(lengths)
    packed = PackedDocuments(corpus, EOS)
    rows = [packed.row(i, seq_len) for i in range(-(-packed.n_tokens // seq_len))]
    tokens, targets = joined(rows)
    scored = targets != IGNORE
    expected = [t for d in range(len(corpus)) for t in [*corpus.tokens(d).tolist(), EOS]]
    assert targets[scored].tolist() == expected
    assert scored.sum() == packed.n_tokens
    np.testing.assert_array_equal(np.concatenate([row.valid for row in rows]), scored)
    np.testing.assert_array_equal(tokens[scored][1:], targets[scored][:-1])
    for row in rows:
        np.testing.assert_array_equal(
            np.diff(row.document_ids)[row.targets[1:] != IGNORE], (row.tokens[1:] == EOS)[row.targets[1:] != IGNORE]
        )


@settings(max_examples=40, deadline=None)
@given(LENGTHS, SEQ_LEN, st.integers(1, 5))
def test_bytes_of_heldout_rows_add_up(tokenizer, corpus_of, lengths, seq_len, step):
    corpus = corpus_of(lengths)
    source = HeldoutSource(corpus, tokenizer, seq_len)
    parts = [source.bytes_of(i, step) for i in range(0, len(source), step)]
    assert sum(parts) == source.n_bytes == int(corpus.n_bytes.sum())
    assert min(parts) >= 0
    long_rows = source.with_seq_len(source.n_tokens)
    assert (len(long_rows), long_rows.batch(0, 9).n_targets) == (1, source.n_tokens)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=60), st.integers(0, 99), st.floats(0, 0.99))
def test_the_side_of_a_document_depends_on_its_content_alone(corpus_of, hashes, seed, fraction):
    corpus = corpus_of([1] * len(hashes), hashes)
    train, heldout = split(corpus, fraction, seed)
    assert sorted([*train.hashes, *heldout.hashes]) == sorted(hashes)
    for document_hash in hashes:
        alone = bool(is_heldout(np.array([document_hash], np.uint64), fraction, seed)[0])
        assert (document_hash in heldout.hashes, document_hash in train.hashes) == (alone, not alone)
    backwards = split(corpus_of([1] * len(hashes), hashes[::-1]), fraction, seed)[1]
    assert shuffled(backwards, seed).hashes.tolist() == shuffled(heldout, seed).hashes.tolist()


def test_a_larger_share_keeps_what_a_smaller_one_held_out():
    hashes = np.arange(5000, dtype=np.uint64)
    small, large = (is_heldout(hashes, fraction, 7) for fraction in (0.05, 0.2))
    assert not (small & ~large).any()
    assert small.mean() == pytest.approx(0.05, abs=0.01)
    assert large.mean() == pytest.approx(0.2, abs=0.02)
