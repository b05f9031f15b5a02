"""Finished outputs: all updates of one put together, compactly; a rollout may have a hundred thousand tokens."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np

from nano3.engine.request import FinishReason, Token, Update

MOST_PIECES = 1024
"""Pieces of text that are put together when there are so many."""


@dataclass
class TokenTable:
    """Tokens in columns, 13 bytes each, and the alternatives of those that have some."""

    ids: array[int] = field(default_factory=lambda: array("i"))
    log_probs: array[float] = field(default_factory=lambda: array("f"))
    sampled: array[float] = field(default_factory=lambda: array("f"))
    forced: bytearray = field(default_factory=bytearray)
    tops: dict[int, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    """By position."""

    def add(self, token: Token) -> None:
        """Append one."""
        if token.top:
            self.tops[len(self.ids)] = token.top
        self.ids.append(token.id)
        self.log_probs.append(token.log_prob)
        self.sampled.append(token.sampled_log_prob)
        self.forced.append(token.forced)

    def rows(self) -> list[Token]:
        """All of them as Tokens."""
        columns = zip(self.ids, self.log_probs, self.sampled, self.forced, strict=True)
        return [Token(i, p, s, self.tops.get(at, ()), bool(f)) for at, (i, p, s, f) in enumerate(columns)]


@dataclass
class Output:
    """One output: all its updates so far together."""

    index: int = 0
    table: TokenTable = field(default_factory=TokenTable)
    pieces: list[str] = field(default_factory=list)
    """Text as it came; `text` is all of it."""
    finish: FinishReason | None = None
    stop_reason: int | str | None = None
    prompt: tuple[Token, ...] | None = None
    cached_tokens: int = 0
    error: str = ""
    weights_version: int = 0
    """Of the weights that computed it; see GenerationEngine.weights_changed."""
    expert_pieces: list[np.ndarray] = field(default_factory=list)
    """Experts as they came; `experts` is all of them."""

    def add(self, update: Update) -> None:
        """Append one update."""
        for token in update.tokens:
            self.table.add(token)
        if update.text:
            self.pieces.append(update.text)
            if len(self.pieces) >= MOST_PIECES:
                self.pieces = ["".join(self.pieces)]
        self.cached_tokens = max(self.cached_tokens, update.cached_tokens)
        self.prompt = self.prompt or update.prompt
        self.weights_version = update.weights_version
        if update.experts is not None:
            self.expert_pieces.append(update.experts)
            if len(self.expert_pieces) >= MOST_PIECES:
                self.expert_pieces = [np.concatenate(self.expert_pieces, axis=1)]
        if update.finish is not None:
            self.finish, self.stop_reason, self.error = update.finish, update.stop_reason, update.error

    @property
    def text(self) -> str:
        """Text of the output, put together anew at each call once more has come."""
        if len(self.pieces) > 1:
            self.pieces = ["".join(self.pieces)]
        return self.pieces[0] if self.pieces else ""

    @property
    def n_tokens(self) -> int:
        """Tokens of the output."""
        return len(self.table.ids)

    @property
    def token_ids(self) -> np.ndarray:
        """(n_tokens,) int32, a new array at each call, as the following are."""
        return np.array(self.table.ids, dtype=np.int32)

    @property
    def log_probs(self) -> np.ndarray:
        """(n_tokens,) float32 under the model as it is: temperature 1, nothing cut off."""
        return np.array(self.table.log_probs, dtype=np.float32)

    @property
    def sampled_log_probs(self) -> np.ndarray:
        """(n_tokens,) float32 under the distribution that each token was drawn from."""
        return np.array(self.table.sampled, dtype=np.float32)

    @property
    def forced(self) -> np.ndarray:
        """(n_tokens,) bool: written by the thinking budget, not drawn: no part of a policy's loss."""
        return np.array(self.table.forced, dtype=bool)

    @property
    def experts(self) -> np.ndarray | None:
        """(MoE blocks, prompt + output tokens - 1, K) uint8 or int16: the experts that each token used, all but the
        last, which went through no block; None where the request did not want them.

        A training pass over these tokens takes them as `LM.hidden(tokens, routing=...)`.
        """
        if len(self.expert_pieces) > 1:
            self.expert_pieces = [np.concatenate(self.expert_pieces, axis=1)]
        return self.expert_pieces[0] if self.expert_pieces else None

    @property
    def ids(self) -> list[int]:
        """`token_ids` as a list."""
        return self.table.ids.tolist()

    @property
    def tokens(self) -> list[Token]:
        """Tokens with their alternatives, made anew at each call; log-probabilities have float32's precision."""
        return self.table.rows()
