"""Whole rows packed first-fit decreasing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nano3.data.chat.packing import first_fit_decreasing, packed_row
from nano3.data.chat.rows import EncodedRow, Rows, RowWriter


def by_hand(sizes, capacity):
    """The definition: look at every bin in turn."""
    bins, room = [], []
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        place = next((b for b, left in enumerate(room) if left >= sizes[i]), len(bins))
        if place == len(bins):
            bins.append([])
            room.append(capacity)
        bins[place].append(i)
        room[place] -= sizes[i]
    return bins


@given(st.lists(st.integers(1, 20), max_size=60), st.integers(20, 40))
def test_packing_is_first_fit_decreasing(sizes, capacity):
    assert first_fit_decreasing(sizes, capacity) == by_hand(sizes, capacity)


def test_a_row_longer_than_a_sequence_is_never_packed():
    with pytest.raises(AssertionError):
        first_fit_decreasing([5], 4)


@pytest.fixture
def rows(tmp_path):
    writer = RowWriter(tmp_path / "rows")
    for i, (ids, trained) in enumerate([([5, 6, 7, 8], [0, 0, 1, 1]), ([9, 10, 11], [0, 1, 1])]):
        row = EncodedRow("a.jsonl", i + 1, i, np.array(ids, np.uint32), np.array(trained, bool), 2**63 + i)
        writer.add(row, i == 1)
    writer.close()
    return Rows(tmp_path / "rows")


def test_rows_come_back_as_they_were_written(rows):
    ids, trained = rows.tokens(0)
    assert (ids.tolist(), trained.tolist()) == ([5, 6, 7, 8], [False, False, True, True])
    assert rows.places.tolist() == [3, 2]
    assert [rows.name(i) for i in (0, 1)] == ["a.jsonl:1", "a.jsonl:2 turn 2"]
    assert rows.tasks.tolist() == [2**63, 2**63 + 1]
    assert rows.heldout.tolist() == [False, True]


def test_targets_stay_inside_their_row_and_padding_is_no_token(rows):
    packed = packed_row([rows], [(0, 1), (0, 0)], 7, pad_id=0)
    assert packed.tokens.tolist() == [9, 10, 5, 6, 7, 0, 0]
    assert packed.targets.tolist() == [10, 11, -100, 7, 8, -100, -100]
    assert packed.document_ids.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert packed.valid.tolist() == [True] * 5 + [False] * 2
    assert packed.documents == ["a.jsonl:2 turn 2", "a.jsonl:1"]
