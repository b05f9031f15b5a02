"""Scheduled works through the model: which go together, and what comes of each pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from nano3.engine.request import Token
from nano3.engine.sampler import sample
from nano3.engine.scheduler import Work
from nano3.engine.sequence_sampler import SequenceSampler
from nano3.engine.sizing import expert_type
from nano3.model.head import logits
from nano3.model.lm import LM
from nano3.model.state.plan import Plan, Span
from nano3.model.state.pool import StatePool
from nano3.model.state.transfer import on_device
from nano3.model.step import Ahead, choosing_step, most_rows, step, why_not


@dataclass
class Passed:
    """Works that went through the model together."""

    works: list[Work]
    starts: Iterable[int]
    """First row of each."""
    hidden: Tensor | None
    """(tokens of the pass, D); None where `chosen` is all that is wanted."""
    logits: Tensor | None
    """(tokens of the pass, V) where they came with it, valid until the model's next step."""
    chosen: list[Token] | None = None
    """Next token of each work, where it came with the pass."""
    experts: np.ndarray | None = None
    """(MoE blocks, tokens of the pass, K), where a work's request wants them."""


class Passes:
    """A model on its pool of states.

    Args:
        model: on the pool's device.
        pool: states of all sequences.
        ids_limit: ids from here on are never chosen.
        exact: nothing that a work gives depends on the works beside it. Products of PyTorch round a row differently by
            the number of rows, so everything that has no one C++ call goes through alone.
    """

    def __init__(self, model: LM, pool: StatePool, ids_limit: int, exact: bool) -> None:
        self.model, self.pool, self.ids_limit, self.exact = model, pool, ids_limit, exact
        self.device = model.embeddings.weight.device
        self.computed = 0
        """Tokens that went through the model."""

    def run(self, works: list[Work]) -> list[Passed]:
        """Advance all works' sequences."""
        parts = self._exact_parts(works) if self.exact else self._parts(works)
        return [passed for part in parts for passed in self._pass(part)]

    def logits(self, done: Passed, rows: list[int]) -> Tensor:
        """(len(rows), V) logits of some of the pass's tokens, float32."""
        if done.logits is not None:
            return rows_of(done.logits, rows)
        assert done.hidden is not None
        return logits(self.model.lm_head, rows_of(done.hidden, rows))

    def sample(self, logits: Tensor, samplers: Sequence[SequenceSampler]) -> list[Token]:
        """The next token of each row."""
        if self.exact and len(samplers) == 1:
            # PyTorch shares the sum over a single long row out to threads, and so rounds it differently.
            return sample(logits[[0, 0]], [samplers[0], samplers[0]], self.ids_limit)[:1]
        return sample(logits, samplers, self.ids_limit)

    def _parts(self, works: list[Work]) -> list[list[Work]]:
        """What goes through the model together: single tokens apart from prompts where they have a faster way, which
        rounds differently, so that decoding does not depend on whether a prompt was beside it."""
        works.sort(key=lambda work: (work.tokens > 1, work.sequence.slot))
        count = sum(work.tokens == 1 for work in works)
        if not count or (len(works) == count <= most_rows(self.model)) or why_not(self.model) is not None:
            return [works]
        steps = self._groups(works[:count])
        return [*steps, works[count:]] if count < len(works) else steps

    def _exact_parts(self, works: list[Work]) -> list[list[Work]]:
        works.sort(key=lambda work: work.sequence.slot)
        steps, singles = [w for w in works if w.is_step], [w for w in works if w.tokens == 1 and not w.is_step]
        longer = [[work] for work in works if work.tokens > 1]
        return [*self._groups(steps), *self._groups(singles), *longer]

    def _groups(self, works: list[Work]) -> list[list[Work]]:
        most = most_rows(self.model)
        return [works[start : start + most] for start in range(0, len(works), most)]

    def _pass(self, works: list[Work]) -> list[Passed]:
        experts = any(work.sequence.experts is not None for work in works)
        if all(work.is_step for work in works) and (passed := self._choosing_pass(works, experts)) is not None:
            self.computed += len(works)
            return [passed]
        plan = Plan([_span(work) for work in works], self.pool.page_size, self.device)
        row: list[int] = []
        for work in works:
            sequence = work.sequence
            row += sequence.tokens[sequence.computed : sequence.computed + work.length]
            row += work.drafts
        tokens = on_device(row, self.device).unsqueeze(0)
        state = self.pool.state(plan)
        stepped = (
            step(self.model, tokens, state, logits=True, experts=experts, exact=self.exact) if plan.is_step else None
        )
        if stepped is None and self.exact and len(works) > 1:
            return [passed for work in works for passed in self._pass([work])]
        self.computed += plan.n_tokens
        if stepped is None:
            hidden = self.model.hidden(tokens, state=state, keep_expert_ids=experts)
            ids = None if hidden.expert_ids is None else hidden.expert_ids[:, 0]
            return [Passed(works, plan.starts, hidden.x[0], None, experts=self._compact(ids))]
        return [Passed(works, plan.starts, stepped.hidden, stepped.logits, experts=self._compact(stepped.expert_ids))]

    def _compact(self, expert_ids: Tensor | None) -> np.ndarray | None:
        if expert_ids is None:
            return None
        return expert_ids.to(expert_type(self.model.cfg)).cpu().numpy()

    def _choosing_pass(self, works: list[Work], experts: bool) -> Passed | None:
        """The next token of each work, one call for all of them; None where that cannot be."""
        samplers = [work.sequence.sampler for work in works]
        draws = [sampler.draw() for sampler in samplers]
        ahead = [_ahead(work) for work in works]
        chosen = choosing_step(self.model, ahead, self.pool, self.ids_limit, draws, experts=experts, exact=self.exact)
        if chosen is None:
            return None
        others = [sampler for sampler, token in zip(samplers, chosen.tokens, strict=True) if token is None]
        rest = iter(self.sample(chosen.logits, others) if chosen.logits is not None else ())
        tokens = [next(rest) if token is None else Token(*token) for token in chosen.tokens]
        return Passed(works, range(len(works)), None, None, tokens, self._compact(chosen.expert_ids))


def rows_of(x: Tensor, rows: list[int]) -> Tensor:
    """x[rows], without a copy where that is all of x."""
    if len(rows) == x.shape[0] and rows == list(range(len(rows))):
        return x
    return x[on_device(rows, x.device)]


def _ahead(work: Work) -> Ahead:
    sequence = work.sequence
    return Ahead(sequence.tokens[sequence.computed], sequence.slot, sequence.pages, sequence.computed + 1)


def _span(work: Work) -> Span:
    sequence = work.sequence
    length = work.length + len(work.drafts)
    return Span(length, sequence.slot, sequence.computed, sequence.pages, work.saves)
