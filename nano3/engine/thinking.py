"""Hard budget for the thinking part of an output."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.request import Sampling, ThinkingBudget

OPEN, CLOSE = "<think>", "</think>"


def thinking_tracker(sampling: Sampling, tokenizer: Tokenizer) -> ThinkingTracker | None:
    """The tracker that a request needs: for its budget, or only to see where its grammar begins; None for neither."""
    after_thinking = sampling.grammar is not None and sampling.grammar.after_thinking
    if sampling.thinking is None and not after_thinking:
        return None
    opener = sampling.grammar.opener if sampling.grammar is not None else ""
    return ThinkingTracker(sampling.thinking, tokenizer, opener)


def ends_in_thinking(ids: Sequence[int], tokenizer: Tokenizer) -> bool:
    """Whether a prompt ends inside a thinking part."""
    text = tokenizer.decode(ids)
    return text.rfind(OPEN) > text.rfind(CLOSE)


class ThinkingTracker:
    """Watches an output's tokens for the end of thinking, and writes that end where the budget is spent.

    At the first token with a line break at or after `tokens` of thinking the output must go on with `</think>`; at
    `tokens + grace` without one, with a line break and `</think>`. After that nothing is forced any more, even if
    thinking opens again.
    """

    def __init__(self, budget: ThinkingBudget | None, tokenizer: Tokenizer, opener: str = "") -> None:
        """Without a budget it only watches; thinking is then open from the start. `opener` ends thinking too."""
        self.thinking_closed = False
        """Whether the output has said `</think>`, itself or by force, or the opener."""
        self.rest = ""
        """Text after thinking in the token that ended it (a tokenizer may join `>` to what follows): without white
        space around it after </think>, behind the opener where it was that."""
        self._budget = budget
        self._tokenizer = tokenizer
        self._open = budget is None or budget.open
        self._n_thinking = 0
        self._tail = ""
        self._forced: deque[int] = deque()
        self._ends = (CLOSE, opener) if opener else (CLOSE,)
        self._ids = {tag: tokenizer.token_id(tag) for tag in (OPEN, *self._ends)}
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
            opened, self._tail = self._saw((OPEN,), token_id, text)
            self._open = bool(opened)
            return
        self._n_thinking += 1
        ended, rest = self._saw(self._ends, token_id, text)
        if ended:
            self.thinking_closed, self.rest = True, rest.strip() if ended == CLOSE else ended + rest
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

    def _saw(self, tags: tuple[str, ...], token_id: int, text: str) -> tuple[str, str]:
        """The first of the tags that is complete with this token, be it one token of its own or spread over several,
        and the text after it in the token; without a tag, the text that may be the beginning of one is kept."""
        if tag := next((tag for tag in tags if token_id == self._ids[tag]), ""):
            return tag, ""
        seen = self._tail + text
        found = min(((seen.find(tag), tag) for tag in tags if tag in seen), default=None)
        if found is None:
            self._tail = seen[-max(map(len, tags)) :]
            return "", self._tail
        at, tag = found
        return tag, seen[at + len(tag) :]
