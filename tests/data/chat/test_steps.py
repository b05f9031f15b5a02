"""Packed conversations by optimizer step."""

import json
from collections import Counter

import numpy as np
import pytest

from nano3.data.chat.rows import EncodedRow, Rows, RowWriter
from nano3.data.chat.steps import WINDOW_STEPS, ChatSteps, HeldoutRows, TrainingSet
from nano3.data.tokens.steps import Plan

LENGTH, BATCH = 32, 4


def store(folder, lengths, first=100, heldout=()):
    writer = RowWriter(folder)
    for i, length in enumerate(lengths):
        ids = np.arange(first + 40 * i, first + 40 * i + length, dtype=np.uint32)
        writer.add(EncodedRow(folder.name, i + 1, 0, ids, np.arange(length) > 1, first + i), i in heldout)
    writer.close()
    return Rows(folder)


@pytest.fixture
def sets(tmp_path):
    rng = np.random.default_rng(0)
    small = store(tmp_path / "small", rng.integers(3, 20, 10).tolist(), heldout={3})
    large = store(tmp_path / "large", rng.integers(3, 33, 900).tolist(), 10_000)
    return [TrainingSet("small", small, 1.0), TrainingSet("large", large, 3.0)]


def steps(sets, rank=0, size=1, seed=5):
    return ChatSteps(sets, Plan(BATCH, 2, rank, size), LENGTH, 0, seed)


def drawn(source, first, last):
    """How often each row is trained on in steps first .. last - 1."""
    return Counter(member for n in range(first, last) for one in source.sequences(n) for member in one)


def same(one, two):
    return all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for a, b in zip(one, two, strict=True)
        for name in ("tokens", "targets", "document_ids")
    )


def test_every_row_is_drawn_equally_often_and_each_set_has_its_share_of_the_tokens(sets):
    source, count = steps(sets), 5 * WINDOW_STEPS
    found = drawn(source, 0, count)
    places = [sum(n * int(sets[s].rows.places[row]) for (s, row), n in found.items() if s == which) for which in (0, 1)]
    assert places[0] / sum(places) == pytest.approx(0.25, abs=0.02)
    small = [n for (s, _), n in found.items() if s == 0]
    assert len(small) == 9, "the held-out row is never trained on"
    assert max(small) - min(small) <= 1 + 1, "whole epochs, but for what waits for its turn"
    assert source.epochs(count)["small"] == pytest.approx(sum(small) / 9)
    assert source.epochs(count)["large"] == pytest.approx(sum(found.values()) / 900 - sum(small) / 900)
    few = steps(sets)
    assert few.epochs(3)["small"] == pytest.approx(sum(drawn(steps(sets), 0, 3)[0, r] for r in range(10)) / 9)
    assert few.epochs(0) == {"small": 0.0, "large": 0.0}


def test_sequences_are_nearly_full(sets):
    source = steps(sets)
    batches = [batch for n in range(3 * WINDOW_STEPS) for batch in source.step(n)]
    filled = np.mean([batch.n_tokens / batch.tokens.numel() for batch in batches])
    assert filled > 0.97
    assert all(batch.tokens.shape == (2, LENGTH) for batch in batches)


def test_ranks_share_the_sequences_of_one(sets):
    alone, both = steps(sets), [steps(sets, rank, 2) for rank in (0, 1)]
    for n in (0, 3, WINDOW_STEPS + 1):
        mine = alone.step(n)
        theirs = [source.step(n)[0] for source in both]
        assert same(mine, theirs)


def test_another_seed_gives_another_order(sets):
    assert not same(steps(sets).step(0), steps(sets, seed=6).step(0))


@pytest.mark.parametrize("done", [1, WINDOW_STEPS - 1, WINDOW_STEPS, 2 * WINDOW_STEPS + 3])
def test_a_saved_source_goes_on_as_it_would_have(sets, done):
    whole, first, second = steps(sets), steps(sets), steps(sets)
    for n in range(done + 1):  # one step ahead, as the trainer reads
        first.step(n)
    second.restore(json.loads(json.dumps(first.state())))
    for n in range(done, done + WINDOW_STEPS + 2):
        assert same(second.step(n), whole.step(n))
    assert second.epochs(done + 2) == whole.epochs(done + 2)


def test_held_out_rows_are_all_there_once(sets, tokenizer):
    held = HeldoutRows([one.rows for one in sets], LENGTH, tokenizer)
    assert len(held) == 1
    ids, trained = sets[0].rows.tokens(3)
    batch = held.batch(0, 1)
    assert batch.n_tokens == len(ids) - 1
    assert batch.n_targets == int(trained.sum())
    assert held.bytes_of(0, 1) == len(tokenizer.decode(ids[trained].tolist()).encode())
