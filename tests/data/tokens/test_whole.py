from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nano3.data.tokens.batch import IGNORE
from nano3.data.tokens.blend import Blend
from nano3.data.tokens.source import TokenSource
from nano3.data.tokens.whole import OPEN_ROWS, WholeDocuments

EOS = 2
LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=40)


def read_all(stream: WholeDocuments, seq_len: int) -> list:
    return [stream.row(i, seq_len) for i in range(stream.rows(seq_len))]


def documents_of(rows) -> list[list[int]]:
    """Tokens of every scored document of some rows, each checked to be whole and predicted."""
    found = []
    for row in rows:
        for number in range(row.document_ids[-1] + 1):
            inside = row.document_ids == number
            tokens, targets = row.tokens[inside], row.targets[inside]
            assert (row.valid[inside] == (targets != IGNORE)).all()
            if (targets == IGNORE).all():
                assert (tokens == EOS).all()
                assert number == row.document_ids[-1]
                continue
            assert tokens[0] == EOS
            assert targets.tolist() == [*tokens[1:].tolist(), EOS]
            found.append(tokens[1:].tolist())
    return found


@settings(max_examples=40, deadline=None)
@given(LENGTHS, st.integers(0, 20), st.integers(0, 9))
def test_every_document_is_whole_in_one_row_and_predicted_once(corpus_of, lengths, more, seed):
    corpus, seq_len = corpus_of(lengths), max(lengths) + 1 + more
    stream = WholeDocuments(corpus, EOS, seed, seq_len)
    rows = read_all(stream, seq_len)
    assert sorted(documents_of(rows)) == sorted(corpus.tokens(d).tolist() for d in range(len(corpus)))
    assert sum(int((row.targets != IGNORE).sum()) for row in rows) == stream.epoch_tokens == sum(lengths) + len(lengths)
    assert all(len(row.tokens) == seq_len for row in rows)
    np.testing.assert_array_equal(stream.row(stream.rows(seq_len), seq_len).tokens, rows[0].tokens)


def test_a_batch_marks_padding_and_does_not_count_it(corpus_of):
    corpora = {"a": corpus_of([5, 9]), "w": corpus_of([4, 7, 3])}
    source = TokenSource(corpora, Blend({"a": 1, "w": 1}), seq_len=13, eos_id=EOS, seed=3, whole={"w"})
    batch = source.batch(0, 6)
    assert torch.equal(batch.valid, batch.targets != IGNORE)
    assert batch.n_tokens == batch.n_targets < batch.tokens.numel()
    plain = TokenSource({"a": corpora["a"]}, Blend({"a": 1}), seq_len=13, eos_id=EOS, seed=3).batch(0, 3)
    assert plain.valid is None
    assert plain.n_tokens == 39


def test_rows_are_filled(corpus_of):
    lengths = np.random.default_rng(0).integers(1, 20, 3 * OPEN_ROWS).tolist()
    stream = WholeDocuments(corpus_of(lengths), EOS, 1, 40)
    assert stream.rows(40) <= 1.06 * stream.epoch_tokens / 40


@settings(max_examples=40, deadline=None)
@given(LENGTHS, st.sets(st.integers(31, 60), min_size=1, max_size=3), st.sets(st.integers(2, 30), max_size=3))
def test_a_document_is_read_at_the_shortest_length_that_holds_it(corpus_of, lengths, long, short):
    corpus, run = corpus_of(lengths), sorted(long | short)
    for place, seq_len in enumerate(run):
        shorter = run[place - 1] if place else 0
        fitting = [n for n in lengths if n < seq_len]
        own = [n for n in fitting if n >= shorter]
        if not fitting:
            with pytest.raises(ValueError, match=rf"no document of this fits whole in a row of {seq_len} tokens"):
                WholeDocuments(corpus, EOS, 0, seq_len, run)
        else:
            rows = read_all(WholeDocuments(corpus, EOS, 0, seq_len, run), seq_len)
            assert sorted(map(len, documents_of(rows))) == sorted(own or fitting)


def test_orders_depend_on_the_seed(corpus_of):
    corpus = corpus_of([4] * 20)
    first, same, other = (WholeDocuments(corpus, EOS, seed, 10).row(0, 10).tokens.tolist() for seed in (1, 1, 2))
    assert first == same != other


def test_a_source_reads_every_row_once_an_epoch_in_new_orders(corpus_of):
    corpora = {"a": corpus_of([5, 9, 3, 8] * 5), "w": corpus_of([4, 7, 9, 12, 3, 3])}

    def source(seq_len=13, lengths=()):
        made = TokenSource(corpora, Blend({"a": 1, "w": 1}), seq_len=13, eos_id=EOS, seed=3, whole={"w"})
        return made.with_seq_len(seq_len, lengths)

    for seq_len, lengths, n_documents in ((13, (), 6), (13, (8, 13), 2), (8, (8, 13), 4)):
        view = source(seq_len, lengths)
        numbers = [i for i in range(80) if view.blend.category(i)[0] == "w"]
        rows = [view.sequence(i) for i in numbers]
        n = next(n for n in range(1, 20) if view.epochs(2 * n)["w"] == pytest.approx(1))
        epochs = [[row.tokens.tolist() for row in rows[k * n : k * n + n]] for k in range(3)]
        assert len(documents_of(rows[:n])) == n_documents
        assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
        again = source(seq_len, lengths)
        for i, row in reversed(list(zip(numbers, rows, strict=True))):
            np.testing.assert_array_equal(again.sequence(i).tokens, row.tokens)


def test_rows_of_other_categories_are_as_they_always_were(corpus_of):
    corpora = {"a": corpus_of([5, 9, 3, 8]), "w": corpus_of([4, 7])}
    digest = hashlib.sha256()
    source = TokenSource(corpora, Blend({"a": 3, "w": 1}), seq_len=9, eos_id=EOS, seed=1, whole={"w"})
    for view in (source, source.with_seq_len(24, (9, 24))):
        for number in range(40):
            if view.blend.category(number)[0] == "a":
                row = view.sequence(number)
                digest.update(row.tokens.tobytes() + row.targets.tobytes() + row.document_ids.tobytes())
    assert digest.hexdigest()[:16] == "540fb67f5c77c263"


def test_what_does_not_fit_may_have_been_counted_with_another_tokenizer(corpus_of):
    with pytest.raises(ValueError, match=r"at most 7 tokens, counted with the tokenizer of this run") as alone:
        WholeDocuments(corpus_of([9]), EOS, 0, 8, [8])
    assert "drop" not in str(alone.value)
    with pytest.raises(ValueError, match="drop that length, or make documents of at most 7 tokens"):
        WholeDocuments(corpus_of([9]), EOS, 0, 8, [8, 16])
