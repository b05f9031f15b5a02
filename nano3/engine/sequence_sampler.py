"""What one sequence's next token depends on besides the logits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from nano3.engine.request import Sampling
from nano3.kernels.cpu.draw import Draw
from nano3.kernels.eager.draw import ALL

if TYPE_CHECKING:
    from nano3.engine.grammar.masks import GrammarMatcher
    from nano3.engine.thinking import ThinkingTracker

COLDEST, HOTTEST = 1e-6, 1e6
"""Temperatures beyond these act like them: nothing but exact ties, or everything, is left to chance."""
_MASK = (1 << 64) - 1
GREEDY = Draw(0.0, 0, 1.0, 0.0, 0.5)
"""The most probable token."""


class SequenceSampler:
    """Sampling state of one sequence: seen tokens, position of the draw, grammar, thinking budget.

    It follows from the tokens accepted alone, so a sequence that loses its model state to another keeps it.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt: Sequence[int] | np.ndarray,
        *,
        seed: int,
        eos_ids: frozenset[int],
        vocab_size: int,
        grammar: GrammarMatcher | None = None,
        thinking: ThinkingTracker | None = None,
    ) -> None:
        """`seed`: any integer; `vocab_size`: number of ids that may be drawn.

        `prompt` may be given as `penalized_ids(sampling, prompt)`, which the outputs of one prompt can then share.
        `thinking` is left out of account under a grammar that begins with the output, which has no room for it.

        Raises:
            ValueError: a bias for a token that does not exist, or a grammar after thinking that nothing watches for.
        """
        wrong = [token for token in sampling.logit_bias if not 0 <= token < vocab_size]
        if wrong:
            raise ValueError(f"logit_bias: no token has the id {wrong[0]}; ids go from 0 to {vocab_size - 1}")
        if grammar is not None and grammar.after_thinking and thinking is None:
            raise ValueError("a grammar after thinking needs a ThinkingTracker to see where thinking ends")
        self.sampling = sampling
        self.n_tokens = 0
        self.grammar = grammar
        self.thinking = thinking if grammar is None or grammar.after_thinking else None
        self._is_plain = not (
            sampling.log_probs or sampling.logit_bias or has_penalties(sampling) or grammar is not None
        )
        temperature = min(max(sampling.temperature, COLDEST), HOTTEST)
        settings = temperature, min(sampling.top_k, ALL), sampling.top_p, sampling.min_p
        self._settings = settings if sampling.temperature else None
        self._min_tokens = sampling.min_tokens
        self._seed = seed & _MASK
        self._eos = tuple(sorted(i for i in eos_ids if 0 <= i < vocab_size))
        stops = {i for i in sampling.stop_ids if 0 <= i < vocab_size}
        self._endings = tuple(sorted(stops if sampling.ignore_eos else stops | set(self._eos)))
        self._counts = _Counts() if has_penalties(sampling) else None
        ids = prompt if isinstance(prompt, np.ndarray) else penalized_ids(sampling, prompt)
        self._prompt_ids = ids[: np.searchsorted(ids, vocab_size)]

    def draw(self) -> Draw | None:
        """How the next token is chosen, where the logits are taken as they are, and nothing but it is asked for."""
        if not self._is_plain or self.n_tokens < self._min_tokens:
            return None
        if self.thinking is not None and self.thinking.forced is not None:
            return None
        return GREEDY if self._settings is None else Draw(*self._settings, self.uniform())

    @property
    def forced(self) -> int | None:
        """Token that must come next, whatever the logits say."""
        return self.thinking.forced if self.thinking is not None else None

    @property
    def active_grammar(self) -> GrammarMatcher | None:
        """The grammar, where it rules the next token."""
        if self.grammar is None or (self.grammar.after_thinking and not self._thought):
            return None
        return self.grammar

    @property
    def banned(self) -> tuple[int, ...]:
        """Ids that may not come next: ends of text before min_tokens, or before a grammar that is still to begin.

        A finished grammar allows nothing but an end of text, so it goes before min_tokens.
        """
        if self.grammar is not None and self.grammar.done:
            return ()
        if self.n_tokens < self.sampling.min_tokens:
            return self._endings
        return self._eos if self.grammar is not None and self.active_grammar is None else ()

    @property
    def has_extras(self) -> bool:
        """Whether the next token's logits are changed before temperature and cuts."""
        return bool(
            self._counts is not None or self.sampling.logit_bias or self.banned or self.active_grammar is not None
        )

    @property
    def prompt_ids(self) -> np.ndarray:
        """Distinct ids of the prompt (N,) int64, where the repetition penalty looks at them."""
        return self._prompt_ids

    @property
    def output_ids(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Distinct ids of the output (N,) int64 and times each is in it (N,) float32; None without penalties."""
        return None if self._counts is None else self._counts.view()

    @property
    def _thought(self) -> bool:
        return self.thinking is not None and self.thinking.thinking_closed

    def accept(self, token_id: int) -> None:
        """Advance by the token that was chosen."""
        grammar = self.active_grammar
        self.n_tokens += 1
        if self._counts is not None:
            self._counts.add(token_id)
        if grammar is not None:
            grammar.accept(token_id)
        if self.thinking is not None:
            self.thinking.accept(token_id)
            if self.grammar is not None and grammar is None and self.thinking.thinking_closed:
                self.grammar.accept_text(self.thinking.rest)

    def uniform(self) -> float:
        """The next position's number in (0, 1): it depends on seed and position only."""
        bits = mix(self._seed ^ _mixed_position(self.n_tokens + 1))
        return ((bits >> 12) + 0.5) / (1 << 52)


def derive_seed(seed: int, index: int) -> int:
    """Seed of one of a request's n outputs; the first keeps the request's own."""
    return seed & _MASK if index == 0 else mix((seed & _MASK) ^ mix(index << 32))


def mix(value: int) -> int:
    """SplitMix64's output function on 64 bits (Steele, Lea and Flood 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


@lru_cache(maxsize=4096)
def _mixed_position(position: int) -> int:
    """Of the many sequences that are at about the same position."""
    return mix(position)


def has_penalties(sampling: Sampling) -> bool:
    """Whether tokens seen before change the logits."""
    return bool(sampling.repetition_penalty != 1 or sampling.presence_penalty or sampling.frequency_penalty)


def penalized_ids(sampling: Sampling, prompt: Sequence[int]) -> np.ndarray:
    """Distinct ids of a prompt (N,) int64, ascending, for the repetition penalty; empty where there is none."""
    return np.unique(np.asarray(prompt if sampling.repetition_penalty != 1 else (), dtype=np.int64))


class _Counts:
    """Distinct ids of an output with their counts, in arrays that grow by doubling."""

    def __init__(self) -> None:
        self._ids = np.zeros(64, dtype=np.int64)
        self._counts = np.zeros(64, dtype=np.float32)
        self._slots: dict[int, int] = {}

    def add(self, token_id: int) -> None:
        slot = self._slots.setdefault(token_id, len(self._slots))
        if slot == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[slot] = token_id
        self._counts[slot] += 1

    def view(self) -> tuple[np.ndarray, np.ndarray]:
        n = len(self._slots)
        return self._ids[:n], self._counts[:n]
