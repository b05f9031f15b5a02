"""Hard budget for the thinking part of an output."""

from __future__ import annotations

from collections import deque

from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.request import Sampling, ThinkingBudget

OPEN, CLOSE = "<think>", "</think>"


def thinking_tracker(sampling: Sampling, tokenizer: Tokenizer) -> ThinkingTracker | None:
    """The tracker that a request needs: for its budget, or only to see where its grammar begins; None for neither."""
    after_thinking = sampling.grammar is not None and sampling.grammar.after_thinking
    if sampling.thinking is None and not after_thinking:
        return None
    return ThinkingTracker(sampling.thinking, tokenizer)


class ThinkingTracker:
    """Watches an output's tokens for the end of thinking, and writes that end where the budget is spent.

    At the first token with a line break at or after `tokens` of thinking the output must go on with `</think>`; at
    `tokens + grace` without one, with a line break and `</think>`. After that nothing is forced any more, even if
    thinking opens again.
    """

    def __init__(self, budget: ThinkingBudget | None, tokenizer: Tokenizer) -> None:
        """Without a budget it only watches; thinking is then open from the start."""
        self.thinking_closed = False
        """Whether the output has said `</think>`, itself or by force."""
        self.rest = ""
        """Text that came after `</think>` in the token that ended it (a tokenizer may join `>` to what follows)."""
        self._budget = budget
        self._tokenizer = tokenizer
        self._open = budget is None or budget.open
        self._n_thinking = 0
        self._tail = ""
        self._forced: deque[int] = deque()
        self._ids = {tag: tokenizer.token_id(tag) for tag in (OPEN, CLOSE)}
        self._check_limit()

    @property
    def forced(self) -> int | None:
        """Token that must come next; None when the model is free."""
        return self._forced[0] if self._forced else None

    def accept(self, token_id: int) -> None:
        """Take in the next token of the output, forced or not."""
        if self.thinking_closed:
            return
        if self._forced:
            self._forced.popleft()
            self.thinking_closed = not self._forced
            return
        text = self._tokenizer.decode([token_id])
        if not self._open:
            self._open = self._saw(OPEN, token_id, text)
            return
        self._n_thinking += 1
        if self._saw(CLOSE, token_id, text):
            self.thinking_closed = True
        elif self._budget is not None and self._n_thinking >= self._budget.tokens and "\n" in text:
            self._force("")
        else:
            self._check_limit()

    def _check_limit(self) -> None:
        budget = self._budget
        if budget is not None and self._open and self._n_thinking >= budget.tokens + budget.grace:
            self._force("\n")

    def _force(self, before: str) -> None:
        close = self._ids[CLOSE]
        if close is None:
            self._forced.extend(self._tokenizer.encode(before + CLOSE))
        else:
            self._forced.extend([*self._tokenizer.encode(before), close])

    def _saw(self, tag: str, token_id: int, text: str) -> bool:
        """Whether the tag is complete with this token, be it one token of its own or spread over several."""
        if token_id == self._ids[tag]:
            self._tail = ""
            return True
        self._tail += text
        _, found, rest = self._tail.partition(tag)
        self._tail = "" if found else self._tail[-len(tag) :]
        if found and tag == CLOSE:
            self.rest = rest
        elif found:
            self._tail = rest
        return bool(found)
