"""Which tokens of which sequences the next pass takes, and who holds which memory.

Oldest first: decoding sequences get their token, prompts share what the step has room for. When memory runs out, kept
prefixes go first, then the youngest running sequence gives its memory up and is computed anew later.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field

from nano3.engine.memory import FreeList, Pages
from nano3.engine.prefix_cache import Entry, Key, PrefixCache
from nano3.engine.sequence import Sequence
from nano3.model.state.pool import StatePool

DENSE = 64
"""States of a prompt kept at full density; from there on the spacing doubles with the length."""
SHORTEST_KEPT = 32
"""Shorter beginnings are not worth a slot."""


@dataclass(frozen=True)
class Limits:
    """Sizes of a step and of what runs at once."""

    max_sequences: int
    max_context: int
    step_tokens: int
    """Most prompt tokens of a step while nothing decodes."""
    mixed_step_tokens: int
    """The same beside decoding sequences, which wait for the step."""
    snapshot_every: int
    prefix_cache: bool
    speculate: int
    """Most tokens guessed ahead; 0: none."""
    exact: bool = False
    """Prompts are computed in pieces that end at multiples of snapshot_every and before the last token, all later
    tokens one by one, and states are kept at such ends only: so a sequence's passes depend on its tokens alone."""


@dataclass
class Work:
    """What the next pass does for one sequence."""

    sequence: Sequence
    length: int
    """Tokens of the sequence to compute."""
    drafts: tuple[int, ...] = ()
    """Guessed tokens to compute behind them."""
    keep: list[tuple[Key, int, int]] = field(default_factory=list)
    """(key, position, slot): states to keep for other prompts."""
    draft_slots: list[int] = field(default_factory=list)
    """Slots for the states before each guess, to return to where it was wrong."""

    @property
    def completes(self) -> bool:
        """Whether the next token can be chosen after the pass."""
        return self.sequence.computed + self.length == len(self.sequence.tokens)

    @property
    def is_step(self) -> bool:
        """Whether it is one token behind which the next one comes, and nothing else is wanted of the pass."""
        s = self.sequence
        simple = self.length == 1 and not self.drafts and not self.keep
        return simple and self.completes and not s.only_scores and not s.scores_prompt

    @property
    def tokens(self) -> int:
        """Tokens that go through the model."""
        return self.length + len(self.drafts)

    @property
    def saves(self) -> tuple[tuple[int, int], ...]:
        """(tokens of the span, slot) of all states to save."""
        if not self.keep and not self.draft_slots:
            return ()
        kept = [(position - self.sequence.computed, slot) for _, position, slot in self.keep]
        return (*kept, *((self.length + i, slot) for i, slot in enumerate(self.draft_slots)))


class Scheduler:
    """The queue, the running sequences and their memory."""

    def __init__(self, pool: StatePool, limits: Limits) -> None:
        self.pool, self.limits = pool, limits
        self.slots, self.pages = FreeList(pool.n_slots), Pages(pool.n_pages)
        self.cache = PrefixCache(self.slots, self.pages, limits.snapshot_every, pool.page_size)
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.preemptions = self.cache_queries = self.cache_hits = self.cached_tokens = 0

    def add(self, sequence: Sequence) -> None:
        """Put a sequence in the queue, by arrival."""
        insort(self.waiting, sequence, key=lambda s: s.arrival)

    def remove(self, sequence: Sequence, *, keep: bool = False) -> None:
        """Take a sequence out and free what it holds; with `keep` its state goes to the prefix cache."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        if keep and self.limits.prefix_cache and not self.limits.exact and sequence.computed >= SHORTEST_KEPT:
            key = sequence.hashes.key(sequence.tokens, sequence.computed)
            self._keep(key, sequence.computed, sequence.slot, sequence)
        else:
            self.slots.give_back(sequence.slot)
        self._release_pages(sequence)

    @property
    def under_way(self) -> int:
        """Sequences of which something was computed: those that run, or had to give their memory up."""
        return len(self.running) + sum(sequence.started for sequence in self.waiting)

    def schedule(self) -> list[Work]:
        """The works of the next pass, memory for each in hand."""
        self._admit()
        decoding = any(s.pending == 1 for s in self.running)
        budget = self.limits.mixed_step_tokens if decoding else self.limits.step_tokens
        works = []
        for sequence in list(self.running):
            if sequence.slot < 0:  # gave its memory to an older one in this round
                continue
            pending = sequence.pending
            decodes = pending == 1
            length = 1 if decodes else self._length(sequence, budget, first=all(w.length == 1 for w in works))
            drafts = self._drafts(sequence) if decodes else ()
            if length == 0 or not self._reach(sequence, sequence.computed + length + len(drafts)):
                continue
            if not decodes:
                budget -= length
            works.append(Work(sequence, length, drafts))
        for work in works:
            self._choose_saves(work)
        return works

    def _length(self, sequence: Sequence, budget: int, *, first: bool) -> int:
        """Tokens of a prompt that the next pass takes; 0 where it has to wait for the next step."""
        if not self.limits.exact:
            return min(sequence.pending, budget)
        last = sequence.prompt_length - 1
        if sequence.computed >= last:
            return 1
        every = self.limits.snapshot_every
        length = min((sequence.computed // every + 1) * every, last) - sequence.computed
        return length if length <= budget or first else 0

    def keep_states(self, work: Work) -> None:
        """After the pass: enter the saved states in the prefix cache."""
        for key, position, slot in work.keep:
            self._keep(key, position, slot, work.sequence)

    def _keep(self, key: Key, length: int, slot: int, sequence: Sequence) -> None:
        experts = None if sequence.experts is None else sequence.experts.upto(length)
        self.cache.add(key, length, slot, sequence.pages, experts)

    def take_back(self, work: Work, right: int) -> None:
        """After the pass: `right` guesses were right; the sequence's slot becomes the state after those."""
        sequence = work.sequence
        if right < len(work.drafts):
            kept, work.draft_slots[right] = work.draft_slots[right], sequence.slot
            sequence.slot = kept
        for slot in work.draft_slots:
            self.slots.give_back(slot)
        work.draft_slots = []

    def _admit(self) -> None:
        for sequence in list(self.waiting):
            if len(self.running) >= self.limits.max_sequences:
                return
            if self._waits_for_first(sequence):
                continue
            if not self._start(sequence):
                return
            self.waiting.remove(sequence)
            insort(self.running, sequence, key=lambda s: s.arrival)

    def _waits_for_first(self, sequence: Sequence) -> bool:
        """Whether a request's further output had better wait for the first one's prompt, to share it."""
        if sequence.index == 0 or sequence.n_output or not self._may_share(sequence):
            return False
        return any(
            s.id == sequence.id and s.index == 0 and s.computed < s.prompt_length - 1
            for s in (*self.running, *self.waiting)
        )

    def _may_share(self, sequence: Sequence) -> bool:
        return self.limits.prefix_cache and len(sequence.tokens) > SHORTEST_KEPT and not sequence.scores_prompt

    def _start(self, sequence: Sequence) -> bool:
        """Give a waiting sequence a slot and pages for all its tokens; False when it has to wait longer."""
        entry = self._look_up(sequence)
        size = self.pool.page_size
        shared = list(entry.pages[: entry.length // size]) if entry else []
        count = -(-len(sequence.tokens) // size) - len(shared)
        if self.pages.missing(shared, count):
            return False  # and the kept prefixes stay as they are
        self.pages.hold(shared)
        slot, new = self._take_slot(), self._take_pages(count)
        assert slot is not None, "running sequences and kept states hold all slots"
        assert new is not None, "pages were counted"
        sequence.slot, sequence.pages = slot, shared + new
        # The entry may just have been dropped to make room, but nothing has been written over what it held.
        if entry is None:
            self.pool.clear_slot(slot)
        else:
            self.pool.copy_slot(entry.slot, slot)
            if entry.length % size:
                self.pool.copy_page(entry.pages[-1], new[0], entry.length % size)
        self._count(sequence, entry)
        return True

    def _look_up(self, sequence: Sequence) -> Entry | None:
        if not self._may_share(sequence):
            return None
        if not self.limits.exact:
            return self.cache.match(sequence.tokens, sequence.hashes, len(sequence.tokens) - 1)
        last, every = sequence.prompt_length - 1, self.limits.snapshot_every
        return self.cache.match(sequence.tokens, sequence.hashes, last, lambda n: n == last or n % every == 0)

    def _count(self, sequence: Sequence, entry: Entry | None) -> None:
        sequence.computed = entry.length if entry else 0
        if entry is not None and entry.experts is not None and sequence.experts is not None:
            sequence.experts.start_with(entry.experts)
        if sequence.started:  # a second start, after a preemption, says nothing about the prompt
            return
        sequence.started = True
        self.cache_queries += self._may_share(sequence)
        if entry is not None:
            self.cache_hits += 1
            sequence.cached_tokens = min(entry.length, sequence.prompt_length)
            self.cached_tokens += sequence.cached_tokens

    def _reach(self, sequence: Sequence, length: int) -> bool:
        """Make room for `length` tokens of a running sequence at the cost of the youngest; False when it is that."""
        missing = -(-length // self.pool.page_size) - len(sequence.pages)
        while missing > 0:
            new = self._take_pages(missing)
            if new is not None:
                sequence.pages += new
                break
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.preemptions += 1
        self.running.remove(sequence)
        self.slots.give_back(sequence.slot)
        self._release_pages(sequence)
        sequence.slot, sequence.computed = -1, 0
        if sequence.scores_prompt:
            sequence.prompt_scores.clear()
        self.add(sequence)

    def _release_pages(self, sequence: Sequence) -> None:
        self.pages.release(sequence.pages)
        sequence.pages = []

    def _take_slot(self) -> int | None:
        while (slot := self.slots.take()) is None:
            if not self.cache.drop_oldest():
                return None
        return slot

    def _take_pages(self, count: int) -> list[int] | None:
        while (pages := self.pages.take(count)) is None:
            if not self.cache.drop_oldest():
                return None
        return pages

    def _drafts(self, sequence: Sequence) -> tuple[int, ...]:
        if not self.limits.speculate:
            return ()
        most = min(self.limits.speculate, sequence.room(self.limits.max_context) - 1)
        return sequence.ngrams.draft(sequence.tokens, most) if most > 0 else ()

    def _choose_saves(self, work: Work) -> None:
        if work.drafts:
            while len(work.draft_slots) < len(work.drafts):
                slot = self._take_slot()
                if slot is None:
                    work.drafts = work.drafts[: len(work.draft_slots)]
                    break
                work.draft_slots.append(slot)
        elif self.limits.prefix_cache and work.length > 1:
            self._choose_kept(work)

    def _choose_kept(self, work: Work) -> None:
        sequence, start = work.sequence, work.sequence.computed
        stop, every = start + work.length, self.limits.snapshot_every
        wanted = {p for p in range((start // every + 1) * every, stop + 1, every) if _worth_keeping(p, every)}
        asked = () if self.limits.exact else sequence.request.cache_at
        wanted |= {p for p in (*asked, sequence.prompt_length - 1) if start < p <= stop}
        for position in sorted(wanted):
            if position < SHORTEST_KEPT:
                continue
            key = sequence.hashes.key(sequence.tokens, position)
            if key in self.cache:
                self.cache.touch(key)
                continue
            slot = self._take_slot()
            if slot is None:
                return
            work.keep.append((key, position, slot))


def _worth_keeping(position: int, every: int) -> bool:
    """All multiples of `every` at first, then ever sparser ones: 1M tokens keep some hundreds of states."""
    return position % (every << (position // (DENSE * every)).bit_length()) == 0
