"""Filters of what an assistant wrote: repetition, keywords and patterns (report, section 3.1.3)."""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nano3.config.sft import FilterConfig
from nano3.data.chat.conversation import Conversation, RowError

WINDOW, TRACE, KEYWORD, PATTERN = "repetition in a window", "repetition over a trace", "keyword", "pattern"
"""Reasons."""


class Filters:
    """Refuses conversations by what their assistant wrote: reasoning, words and calls' arguments of each message,
    a trace."""

    def __init__(self, cfg: FilterConfig) -> None:
        self.cfg = cfg
        words = "|".join(re.escape(keyword) for keyword in cfg.keywords)
        self._keywords = re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE) if words else None
        self._patterns = [re.compile(pattern) for pattern in cfg.patterns]

    def check(self, conversation: Conversation) -> None:
        """Raise RowError with the first filter that refuses the conversation."""
        for place, text in _traces(conversation):
            self._check_repetition(text.split(), place)
            self._check_words(text, place)

    def _check_repetition(self, words: Sequence[str], place: str) -> None:
        cfg = self.cfg
        for reason, span, most in ((WINDOW, cfg.window, cfg.window_repeats), (TRACE, 0, cfg.trace_repeats)):
            if not most:
                continue
            repeats, ngram = most_repeated(words, cfg.ngram, span)
            if repeats > most:
                within = f"within {span} words" if span else "in all"
                raise RowError(reason, f"{place} says {' '.join(ngram)[:80]!r} {repeats} times {within}")

    def _check_words(self, text: str, place: str) -> None:
        if self._keywords and (found := self._keywords.search(text)):
            raise RowError(KEYWORD, f"{place} says {found[0]!r}")
        for pattern in self._patterns:
            if found := pattern.search(text):
                raise RowError(PATTERN, f"{place} has {found[0][:80]!r}, which matches {pattern.pattern!r}")


def most_repeated(words: Sequence[str], n: int, window: int = 0) -> tuple[int, tuple[str, ...]]:
    """How often the most repeated n-gram occurs, and which one it is. Occurrences that overlap count once.

    Args:
        words: the text.
        n: words of an n-gram.
        window: occurrences count together that lie whole within so many words; 0: all of the text.
    """
    places: defaultdict[tuple[str, ...], deque[int]] = defaultdict(deque)
    before, counts = [], []  # of each place: the last one that ends before it, -1 for none; how often up to it
    best, found = 0, ()
    for start in range(len(words) - n + 1):
        ngram = tuple(words[start : start + n])
        seen = places[ngram]
        seen.append(start)
        while len(seen) > 1 and seen[1] <= start - n:
            seen.popleft()
        before.append(seen[0] if seen[0] <= start - n else -1)
        if window:
            counts.append(_within(before, start, start + n - window))
        else:
            counts.append(1 + (counts[before[-1]] if before[-1] >= 0 else 0))
        if counts[-1] > best:
            best, found = counts[-1], ngram
    return best, found


def _within(before: Sequence[int], place: int, first: int) -> int:
    """Occurrences at `place` and before it, none of which overlap, from the word `first` on."""
    count = 0
    while place >= max(first, 0):
        count, place = count + 1, before[place]
    return count


def _traces(conversation: Conversation) -> Iterator[tuple[str, str]]:
    """What each answer wrote: reasoning, words, and the calls' arguments."""
    for i, message in enumerate(conversation.messages):
        if message["role"] == "assistant":
            called = [call["function"]["arguments"] for call in message.get("tool_calls", ())]
            texts = [message.get("reasoning_content", ""), message["content"], *_texts(called)]
            yield f"messages[{i}]", "\n".join(texts)


def _texts(value: Any) -> Iterator[str]:
    """All texts inside JSON values, and what else they hold as a text."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield str(name)
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
    else:
        yield str(value)
