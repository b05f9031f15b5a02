"""Packed conversations by optimizer step: a blend of data sets, each repeated as often as its share asks for."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from nano3.data.chat.packing import Member, first_fit_decreasing, packed_row
from nano3.data.chat.rows import Rows
from nano3.data.tokens.batch import stack
from nano3.data.tokens.permutation import permuted
from nano3.data.tokens.steps import Plan
from nano3.data.tokens.tokenizer import Tokenizer

WINDOW_STEPS = 8
"""Optimizer steps whose rows are drawn and packed together: the more, the less padding."""
KEPT_WINDOWS = 3


@dataclass(frozen=True)
class TrainingSet:
    """A data set of the blend."""

    name: str
    rows: Rows
    share: float
    """Its part of the tokens, as a weight."""

    @cached_property
    def chosen(self) -> np.ndarray:
        """Rows that are trained on; the others are held out."""
        return np.flatnonzero(~self.rows.heldout)


@dataclass
class _Position:
    """Where the blend is at the begin of a window; the same on every rank."""

    drawn: list[int]
    """Rows drawn from each set so far, over all epochs."""
    places: list[int]
    """Tokens drawn from each set so far."""
    left: list[Member] = field(default_factory=list)
    """Rows drawn for earlier windows that found no room there."""


class ChatSteps:
    """The step source of training on conversations (nano3.train.feed.StepSource).

    Rows are drawn from the data set that is furthest behind its share of the tokens, in a random order of its own in
    each epoch. What is drawn for a few steps is packed first-fit decreasing; the fullest sequences are trained on, and
    the rows of the others come first the next time. Order and packing depend on nothing but the seed and the rows.
    """

    ahead = True
    shared_state = True

    def __init__(self, sets: Sequence[TrainingSet], plan: Plan, length: int, pad_id: int, seed: int) -> None:
        self.sets, self._plan, self._length, self._pad_id, self._seed = sets, plan, length, pad_id, seed
        total = sum(one.share for one in sets)
        self._shares = [one.share / total for one in sets]
        self._stores = [one.rows for one in sets]
        nothing = [0] * len(sets)
        self._begins = {0: _Position(nothing, nothing.copy())}
        self._window: tuple[int, list[list[Member]]] | None = None

    def step(self, n: int) -> list[Any]:
        """This rank's micro-batches of step `n` (from 0)."""
        sequences, first = self.sequences(n), n * self._plan.batch_size
        size = self._plan.micro_batch_size
        return [
            stack([self._row(members) for members in sequences[start - first : start - first + size]])
            for start in self._plan.starts(n)
        ]

    def sequences(self, n: int) -> list[list[Member]]:
        """The rows in each sequence of step `n`, over all ranks."""
        number, place = divmod(n, WINDOW_STEPS)
        packed, size = self._packed(number), self._plan.batch_size
        return packed[place * size : (place + 1) * size]

    def epochs(self, steps: int) -> dict[str, float]:
        """Times that so many steps go through each set."""
        if not steps:
            return {one.name: 0.0 for one in self.sets}
        self.sequences(steps - 1)
        number, place = divmod(steps - 1, WINDOW_STEPS)
        following = self._begins[number + 1]
        later = self._packed(number)[(place + 1) * self._plan.batch_size :]
        waiting = Counter(chosen for chosen, _ in [*following.left, *(member for one in later for member in one)])
        return {one.name: (following.drawn[i] - waiting[i]) / len(one.chosen) for i, one in enumerate(self.sets)}

    def state(self) -> dict[str, Any]:
        """Where the blend was at the begin of the last few windows, by number."""
        return {"windows": {str(number): vars(begin) for number, begin in self._begins.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved `state()`."""
        begins = {
            int(number): _Position(begin["drawn"], begin["places"], [(s, row) for s, row in begin["left"]])
            for number, begin in state["windows"].items()
        }
        self._begins, self._window = begins, None

    def close(self) -> None:
        """Nothing to do."""

    def _row(self, members: Sequence[Member]) -> Any:
        return packed_row(self._stores, members, self._length, self._pad_id)

    def _packed(self, number: int) -> list[list[Member]]:
        """The sequences of a window; windows are packed one after the other, each once."""
        if self._window is None or self._window[0] != number:
            at = max(known for known in self._begins if known <= number)
            while True:
                sequences, following = self._pack(at, self._begins[at])
                # A new table, since a checkpoint may read the old one in another thread.
                recent = {old: begin for old, begin in self._begins.items() if old > at + 1 - KEPT_WINDOWS}
                self._begins = recent | {at + 1: following}
                self._window = at, sequences
                if at == number:
                    break
                at += 1
        assert self._window is not None
        return self._window[1]

    def _pack(self, number: int, begin: _Position) -> tuple[list[list[Member]], _Position]:
        """The sequences of a window that begins so, and where the next one begins."""
        count = WINDOW_STEPS * self._plan.batch_size
        after = copy.deepcopy(begin)
        members = self._draw(after, count * self._length)
        sizes = [int(self._stores[chosen].places[row]) for chosen, row in members]
        bins = first_fit_decreasing(sizes, self._length)
        bins.sort(key=lambda places: -sum(sizes[i] for i in places))
        packed = [[members[i] for i in places] for places in bins]
        after.left = [member for sequence in packed[count:] for member in sequence]
        packed = packed[:count]
        random.Random(f"{self._seed} {number}").shuffle(packed)
        return packed, after

    def _draw(self, position: _Position, places: int) -> list[Member]:
        """Rows that fill so many places at least, those that were left over first; moves `position` on."""
        members = list(position.left)
        filled = sum(int(self._stores[chosen].places[row]) for chosen, row in members)
        while filled < places:
            chosen = min(range(len(self.sets)), key=lambda i: position.places[i] / self._shares[i])
            row = self._nth(chosen, position.drawn[chosen])
            size = int(self._stores[chosen].places[row])
            members.append((chosen, row))
            position.drawn[chosen] += 1
            position.places[chosen] += size
            filled += size
        return members

    def _nth(self, chosen: int, n: int) -> int:
        """The n-th row drawn from a set."""
        rows = self.sets[chosen].chosen
        epoch, place = divmod(n, len(rows))
        return int(rows[permuted(place, len(rows), (self._seed, self.sets[chosen].name, epoch))])


class HeldoutRows:
    """Held-out conversations in packed sequences of a fixed order (nano3.train.heldout.HeldoutSource)."""

    def __init__(self, stores: Sequence[Rows], length: int, tokenizer: Tokenizer) -> None:
        """`stores`: the rows of each data set, of which those held out are taken."""
        self._stores, self._length, self._tokenizer = stores, length, tokenizer
        members = [(i, int(row)) for i, rows in enumerate(stores) for row in np.flatnonzero(rows.heldout)]
        sizes = [int(self._stores[chosen].places[row]) for chosen, row in members]
        self._packed = [[members[i] for i in places] for places in first_fit_decreasing(sizes, length)]
        random.Random(0).shuffle(self._packed)

    def __len__(self) -> int:
        return len(self._packed)

    def batch(self, start: int, count: int) -> Any:
        """Sequences start .. start + count - 1."""
        chosen = self._packed[start : start + count]
        return stack([packed_row(self._stores, one, self._length, self._tokenizer.pad_id) for one in chosen])

    def bytes_of(self, start: int, count: int) -> int:
        """Bytes of the text that the model is scored on."""
        total = 0
        for chosen, row in (member for sequence in self._packed[start : start + count] for member in sequence):
            ids, trained = self._stores[chosen].tokens(row)
            total += len(self._tokenizer.decode(ids[trained].tolist()).encode())
        return total
