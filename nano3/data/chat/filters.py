"""Filters of what an assistant wrote: repetition, keywords and patterns (report, section 3.1.5)."""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence

from nano3.config.sft import FilterConfig
from nano3.data.chat.conversation import Conversation, RowError

WINDOW, TRACE, KEYWORD, PATTERN = "repetition in a window", "repetition over a trace", "keyword", "pattern"
"""Reasons."""


class Filters:
    """Refuses conversations by what their assistant wrote: reasoning and words of each message, a trace."""

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
    """How often the most repeated n-gram occurs, and which one it is.

    Args:
        words: the text.
        n: words of an n-gram.
        window: occurrences count together that lie whole within so many words; 0: all of the text.
    """
    places: defaultdict[tuple[str, ...], deque[int]] = defaultdict(deque)
    best, found = 0, ()
    for start in range(len(words) - n + 1):
        ngram = tuple(words[start : start + n])
        seen = places[ngram]
        seen.append(start)
        while window and start + n - seen[0] > window:
            seen.popleft()
        if len(seen) > best:
            best, found = len(seen), ngram
    return best, found


def _traces(conversation: Conversation) -> Iterator[tuple[str, str]]:
    for i, message in enumerate(conversation.messages):
        if message["role"] == "assistant":
            yield f"messages[{i}]", f"{message.get('reasoning_content', '')}\n{message['content']}"
