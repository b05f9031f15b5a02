"""Whole rows packed into sequences of one length: none is cut, none sees another, padding is no token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nano3.data.chat.rows import Rows
from nano3.data.tokens.batch import IGNORE, Row

Member = tuple[int, int]
"""A row in a packed sequence: number of its data set, and of the row in it."""


def first_fit_decreasing(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Places of `sizes` by bin: the largest first, each into the first bin that has room, else into a new one.

    Takes n log n steps: a tree over the bins holds the most room below each of its nodes.
    """
    assert all(0 < size <= capacity for size in sizes), "a row that is longer than a sequence"
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    leaves = 1 << max(0, len(sizes) - 1).bit_length()
    room = [capacity] * (2 * leaves)
    bins: list[list[int]] = []
    for i in order:
        node = 1
        while node < leaves:
            node = 2 * node + (room[2 * node] < sizes[i])
        place = node - leaves
        if place == len(bins):
            bins.append([])
        bins[place].append(i)
        room[node] -= sizes[i]
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return bins


def packed_row(sets: Sequence[Rows], members: Sequence[Member], length: int, pad_id: int) -> Row:
    """Rows one after the other in a sequence of `length`; the last token of each is only predicted.

    A position's target is the next token of its row where the model is trained to write that, else -100. What is left
    over is padding in a document of its own.
    """
    tokens = np.full(length, pad_id, np.int64)
    targets = np.full(length, IGNORE, np.int64)
    document_ids = np.full(length, len(members), np.int32)
    begin = 0
    for number, (chosen, row) in enumerate(members):
        ids, trained = sets[chosen].tokens(row)
        end = begin + len(ids) - 1
        tokens[begin:end] = ids[:-1]
        targets[begin:end] = np.where(trained[1:], ids[1:], IGNORE)
        document_ids[begin:end] = number
        begin = end
    names = [sets[chosen].name(row) for chosen, row in members]
    return Row(tokens, targets, document_ids, names, np.arange(length) < begin)
