"""What a RULER task is asked for and what it gives back."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nano3.config.errors import UserError
from nano3.eval.ruler.sources import Sources

CountTokens = Callable[[str], int]
"""Number of tokens of a text, nothing added around it."""


ROUNDING = 64
"""Least lengths are rounded up to a multiple of this: other samples of the task need a little more or less."""


class TooShort(UserError):  # noqa: N818
    """A sample does not fit at the asked length; `least` tokens (a multiple of 64) are enough for it."""

    def __init__(self, task: str, length: int, least: int) -> None:
        least = -(-least // ROUNDING) * ROUNDING
        super().__init__(f"{task} does not fit in {length} tokens: the least length is {least} with this tokenizer")
        self.least = least


@dataclass(frozen=True)
class Sample:
    """One question of RULER."""

    task: str
    length: int
    """Tokens that input and answer may take together."""
    index: int
    seed: int
    text: str
    """The prompt up to where the answer prefix starts."""
    answer_prefix: str
    """The beginning of the answer, given to the model: a base model continues `text + answer_prefix`."""
    references: list[str]
    depth: float | None
    """Where the one needle lies, 0 (start) to 1 (end of the haystack); None for several needles and other tasks."""
    n_tokens: int
    """Tokens of `text + answer_prefix`."""

    @property
    def prompt(self) -> str:
        """What a base model reads."""
        return self.text + self.answer_prefix


@dataclass(frozen=True)
class Request:
    """What decides a sample."""

    task: str
    length: int
    index: int
    seed: int
    count: CountTokens
    sources: Sources
    other: int
    """Tokens of the length that are not the prompt's: answer and reserve."""

    def rng(self, stream: str) -> random.Random:
        """A generator of its own for each purpose; the same at all lengths, so that lengths ask the same questions."""
        return random.Random(f"{self.task}|{self.index}|{self.seed}|{stream}")


@dataclass(frozen=True)
class Draft:
    """A prompt whose length has not been checked."""

    text: str
    answer_prefix: str
    references: Sequence[str]
    depth: float | None = None

    @property
    def prompt(self) -> str:
        """What is counted."""
        return self.text + self.answer_prefix


@dataclass(frozen=True)
class Plan:
    """How to write a prompt of any size."""

    build: Callable[[int], Draft]
    """Prompt with that many units of haystack (lines, words, documents); more units are never fewer tokens."""
    least: int = 0
    """Fewest units that make a question."""
    most: int | None = None
    """Most units there are; None: any number."""
    refine: Callable[[int], Plan] | None = field(default=None)
    """Plan in smaller units for the space that is left after that many whole units."""
