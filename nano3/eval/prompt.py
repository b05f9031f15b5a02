"""What an evaluation asks a model, and what comes back; the same for a local engine and for a server."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

Key = TypeVar("Key", bound=Hashable)
Tick = Callable[[int], None]
"""Called now and then with the prompt tokens computed so far of prompts that are not answered yet."""


@dataclass(frozen=True)
class Prompt:
    """One thing to continue: exactly one of text, ids and messages is given."""

    text: str | None = None
    """Plain text, begun as a document begins in training."""
    ids: tuple[int, ...] | None = None
    """Token ids, taken as they are."""
    messages: tuple[Mapping[str, Any], ...] | None = None
    """A conversation in OpenAI form."""
    prefix: str = ""
    """How the answer begins: put behind the text, or behind the opening of the assistant's turn."""
    max_tokens: int = 16
    """Most new tokens."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these."""
    temperature: float = 0.0
    """0: greedy."""
    seed: int | None = None
    thinking: bool = False
    """The answer to a conversation may begin with thinking."""

    def __post_init__(self) -> None:
        given = [value is not None for value in (self.text, self.ids, self.messages)]
        if sum(given) != 1:
            raise ValueError("a prompt is one of text, ids and messages")


@dataclass(frozen=True)
class Answer:
    """What the model said."""

    text: str
    """Without the prompt's prefix and without special tokens."""
    prompt_tokens: int
    """Tokens of the whole prompt, template and beginning token included; 0 where a server does not say."""
    output_tokens: int = 0
    finish: str = "stop"
    """stop, or length."""
    ids: tuple[int, ...] = ()
    """Tokens of the output; empty from a server."""
    log_probs: tuple[float, ...] = ()
    """Of each output token, at temperature 1; empty from a server."""


class ServerGone(Exception):  # noqa: N818 - what it says, not whose fault it is
    """A server no longer answers, after retries; what was answered before is not lost."""


class Target(Protocol):
    """A model to evaluate."""

    name: str
    """For people: a folder's, a preset's or a served model's name."""
    identity: str
    """Differs for different weights, as far as that can be told."""
    max_context: int | None
    """Most tokens of prompt and output together; None where a server does not say."""
    notes: list[str]
    """What a reader of the results must know about how the model was asked."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, nothing added around it."""
        ...

    def count_tokens(self, text: str) -> int:
        """Number of those."""
        ...

    def count_prompt(self, prompt: Prompt) -> int:
        """Tokens of a whole prompt: with the beginning token or the chat template, and the prefix."""
        ...

    def generate(self, prompts: Iterable[tuple[Key, Prompt]], tick: Tick | None = None) -> Iterator[tuple[Key, Answer]]:
        """Answers as they finish, in any order, many at once; prompts are taken only as there is room for them.

        Raises:
            UserError: a prompt that cannot be answered (too long, refused).
            ServerGone: a server does not answer any more.
        """
        ...

    def close(self) -> None:
        """Free what the target holds."""
        ...
